"""Times as text, as the API server writes them."""

from __future__ import annotations

import datetime as dt


def timestamp(time: dt.datetime) -> str:
    """RFC 3339 in UTC, in whole seconds, as the API server writes its own times."""
    return time.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> dt.datetime:
    """Inverse of ``timestamp``; reads fractions of seconds too."""
    return dt.datetime.fromisoformat(text).astimezone(dt.UTC)
