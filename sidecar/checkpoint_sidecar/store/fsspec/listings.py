"""Clears fsspec's cached listings, for programs that look for a checkpoint through fsspec."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from checkpoint_sidecar.store.fsspec.styles import protocols_of


def forget(url: str) -> None:
    """Make every filesystem of this process list the store of a URL again.

    fsspec caches filesystems, and each caches listings until it writes there itself.
    """
    if "fsspec" not in sys.modules:
        return
    from fsspec import AbstractFileSystem

    scheme, _, path = url.partition("://")
    for kind in _all(AbstractFileSystem):
        if scheme in protocols_of(kind):
            for system in list(vars(kind).get("_cache", {}).values()):
                system.invalidate_cache(path)
                for folder in [each for each in list(system.dircache) if f"{each}/".startswith(f"{path}/")]:
                    system.dircache.pop(folder, None)


def _all(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        yield each
        yield from _all(each)
