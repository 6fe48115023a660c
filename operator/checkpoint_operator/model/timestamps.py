"""Times as text, as the API server writes them."""

from __future__ import annotations

import datetime as dt


def timestamp(time: dt.datetime) -> str:
    """Format as RFC 3339 in UTC and whole seconds, as the API server does."""
    return time.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> dt.datetime:
    """Parse what ``timestamp`` writes, and fractions of seconds too."""
    return dt.datetime.fromisoformat(text).astimezone(dt.UTC)
