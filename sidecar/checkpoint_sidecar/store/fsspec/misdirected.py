"""Refuses URLs that a program mistook for local paths.

Trainers pass whatever output folder they were given to ``Path`` or ``os.makedirs``. A URL then becomes a folder named
``s3:`` in the working directory: the save succeeds, the bucket stays empty, and the pod takes the checkpoint with it.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import PurePath
from typing import Any

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import OBJECT_SCHEMES

_SCHEME = re.compile(r"(?:^|/)([a-z][a-z0-9+.-]+):(?=/|$)")


def refuse() -> None:
    """Refuse, from now on, to create a folder or file at such a path in this process; the error gives the alternative.

    Covers Python code. Files that native code opens by itself, such as ``torch.save``'s, are covered by the folder
    that has to be created first.
    """
    _refusing.add(True)
    _watch()


def allow() -> None:
    """Undo ``refuse``."""
    _refusing.clear()


def check(path: Any, operation: str) -> None:
    """Refuse a local path that was made from a URL.

    Raises:
        ConfigurationError: It was.
    """
    text = os.fsdecode(path) if isinstance(path, str | bytes | PurePath) else ""
    if ":" not in text:
        return
    for scheme in _SCHEME.findall(text):
        if scheme in _remote_schemes():
            raise ConfigurationError(
                operation,
                text,
                f"this is a {scheme}:// URL that was taken for a local path: what is saved there would never reach "
                "the store",
                "Save to a local folder and let Checkpointer save to the store, or pass the URL itself, as a string, "
                "to dcp.save(checkpoint_id=...) or CheckpointWriter.",
            )


_refusing: set[bool] = set()


@cache
def _watch() -> None:
    """Watch every creation of a folder or file, by any library, through an audit hook. It cannot be removed."""
    sys.addaudithook(_on_event)


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if _refusing and (found := _created.get(event)):
        operation, position = found
        if event == "open" and not _writes(arguments[1], arguments[2]):
            return
        check(arguments[position], operation)


_created = {
    "os.mkdir": ("create a folder", 0),
    "open": ("write a file", 0),
    "os.link": ("create a link", 1),
    "os.rename": ("rename a file or folder", 1),
    "os.symlink": ("create a link", 1),
}
"""Operations by audit event, and which argument is the path that is created."""


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return True
    return isinstance(mode, str) and any(letter in mode for letter in "wax+")


@cache
def _remote_schemes() -> frozenset[str]:
    from fsspec import available_protocols

    return frozenset({"file", *OBJECT_SCHEMES, *available_protocols()})
