"""What fsspec remembers of a store's folders, for programs that look at a checkpoint's place through fsspec."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def forget(url: str) -> None:
    """Make every file system of this process list anew what is in the store of a URL.

    fsspec keeps file systems, and each keeps the listings it has seen until it writes there itself.
    """
    if "fsspec" not in sys.modules:
        return
    from fsspec import AbstractFileSystem

    scheme, _, path = url.partition("://")
    for kind in _all(AbstractFileSystem):
        protocols = (kind.protocol,) if isinstance(kind.protocol, str) else kind.protocol
        if scheme in protocols:
            for system in list(vars(kind).get("_cache", {}).values()):
                system.invalidate_cache(path)
                for folder in [each for each in list(system.dircache) if f"{each}/".startswith(f"{path}/")]:
                    system.dircache.pop(folder, None)


def _all(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        yield each
        yield from _all(each)
