"""Where a store may begin a listing that is asked for "after" a key."""

from __future__ import annotations

import re

_BELOW_SLASH = re.compile(r"[\x00-.]")


def beginning(after: str) -> str:
    """Return a key that every store lists before all keys later than ``after``; empty to list from the start.

    A store need not begin later than this, and what it lists too much is left out by the caller. Stores that walk
    folders (SeaweedFS lists ``a/b`` before ``a-b``, and after ``a`` neither) agree with the order of keys as long as no
    character sorts below ``/`` and the key is not a folder's name, hence the last character goes too.
    """
    shared = _BELOW_SLASH.split(after, maxsplit=1)[0].rstrip("/")[:-1]
    return "" if shared.endswith("/") else shared
