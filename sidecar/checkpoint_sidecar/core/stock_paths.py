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

_ABSOLUTE = re.compile(rb"X([\s\S]{4})/")
"""The beginning of a text in a pickle: the letter X, its length in bytes, and the text."""
_LONGEST_PATH = 4096


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
    parts, copied, position = list[bytes](), 0, 0
    while paths and (match := _ABSOLUTE.search(data, position)):
        begin, position = match.end(1), match.start() + 1
        size = int.from_bytes(match[1], "little")
        path = data[begin : begin + size] if size <= _LONGEST_PATH else b""
        new = paths.get(b"/".join(path.split(b"/")[-depth:]).decode(errors="replace"))
        if new is not None:
            parts += [data[copied : match.start()], _text(new.encode())]
            copied = position = begin + size
    return b"".join((*parts, data[copied:]))


def _text(value: bytes) -> bytes:
    return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value
