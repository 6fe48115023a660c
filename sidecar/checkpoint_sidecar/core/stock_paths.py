"""Paths of shared files in the metadata that torch's own reader reads.

That reader joins the folder that it was given with a path. Where the path begins with ``/``, the join drops the folder,
for local files and for fsspec's alike: what remains is the bucket and the key, or the absolute path of a file. So such
metadata is bound to the place of the run, while all other metadata moves with it.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import parse_url

_ABSOLUTE = re.compile(rb"X([\s\S]{4})(/[^\x00-\x1f]+)")
"""A text in a pickle: the letter X, its length in bytes, and the text, which other opcodes may follow."""


def root_of(url: str) -> str:
    """Return how torch's readers spell the root of a run, or an empty string where they have no way to.

    Args:
        url: The store's.
    """
    try:
        location = parse_url(url)
    except ConfigurationError:
        return ""
    return "/".join(("", *filter(None, (location.bucket, location.path))))


def with_paths(data: bytes, paths: Mapping[str, str]) -> bytes:
    """Return a pickle of metadata with other paths in place of absolute ones, without executing it.

    Args:
        paths: The new paths by the keys of the files, with which the absolute paths end.
    """
    depth = max((key.count("/") + 1 for key in paths), default=0)

    def replaced(match: re.Match[bytes]) -> bytes:
        size = int.from_bytes(match[1], "little")
        key = b"/".join(match[2][:size].split(b"/")[-depth:]).decode(errors="replace")
        new = paths.get(key) if size <= len(match[2]) else None
        return match[0] if new is None else _text(new.encode()) + match[2][size:]

    return _ABSOLUTE.sub(replaced, data) if paths else data


def _text(value: bytes) -> bytes:
    return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value
