"""Chooses the start of a listing "after" a key."""

from __future__ import annotations

import re

_BELOW_SLASH = re.compile(r"[\x00-.]")


def beginning(after: str) -> str:
    """Return a key that every store lists before all keys later than ``after``; empty to list from the start.

    The caller leaves out keys that the store lists in addition. Stores that walk folders (SeaweedFS lists ``a/b``
    before ``a-b``, and neither after ``a``) agree with the order of keys only if no character sorts below ``/`` and the
    key is not a folder's name, hence the last character is removed too.
    """
    shared = _BELOW_SLASH.split(after, maxsplit=1)[0].rstrip("/")[:-1]
    return "" if shared.endswith("/") else shared
