"""Converts a filesystem's description of a file to this package's types."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from checkpoint_sidecar.store.base import ObjectInfo

# As s3fs, adlfs, (sftp, local, gcsfs), webdav4, gcsfs, webhdfs and memory call it.
_MODIFIED = ("LastModified", "last_modified", "mtime", "modified", "updated", "modificationTime", "created")
_MOST_SECONDS = 1e11
"""A larger number counts milliseconds."""


def described(fs: Any, key: str, found: Mapping[str, Any]) -> ObjectInfo:
    """Convert an entry of a listing, or a filesystem's description of one path.

    Raises:
        OSError: The filesystem does not say when the file was modified.
    """
    times = (moment for name in _MODIFIED if (moment := parse_time(found.get(name))) is not None)
    modified = next(times, None) or parse_time(fs.modified(found["name"]))
    if modified is None:
        raise OSError("the filesystem does not say when the file was modified")
    return ObjectInfo(key, int(found["size"] or 0), modified)


def parse_time(value: Any) -> dt.datetime | None:
    """Return a filesystem's time in UTC: it is a datetime, an ISO text, or seconds or milliseconds since 1970."""
    match value:
        case dt.datetime():
            return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
        case bool():
            return None
        case int() | float():
            return dt.datetime.fromtimestamp(value / 1000 if value > _MOST_SECONDS else value, dt.UTC)
        case str():
            try:
                return parse_time(dt.datetime.fromisoformat(value))
            except ValueError:
                return None
    return None
