"""Chooses how to write through one kind of fsspec filesystem: in one step, or through a temporary file.

fsspec's interface does not say whether a write is atomic, so this is decided by what a filesystem's class implements.
The probe then checks the decision with real requests (``conformance.probe``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rename:
    """The two renames of a filesystem, both atomic on the server.

    Attributes:
        claim: Renames a file unless the new name is taken; then it raises any exception.
        replace: Renames a file over another one.
    """

    claim: Callable[[Any, str, str], object]
    replace: Callable[[Any, str, str], object]


@dataclass(frozen=True, slots=True)
class AccessStyle:
    """How to write and read through a filesystem.

    Attributes:
        create: Writes a small object unless the path is taken; None to write a temporary file and claim the name.
        rename: How a temporary file gets its name.
        staged_puts: Whether small objects are written as temporary files, because a write is visible while it runs.
        staged_uploads: The same for large objects.
        read: Returns the bytes of a path from one offset up to another, fewer at the end of the file.
    """

    create: Callable[[Any, str, bytes], object] | None
    rename: Rename
    staged_puts: bool
    staged_uploads: bool
    read: Callable[[Any, str, int, int], bytes] = lambda fs, path, start, end: fs.cat_file(path, start=start, end=end)


def style_of(fs: Any) -> AccessStyle:
    """Decide by the filesystem's class; makes no request."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    kind = type(fs)
    for protocol, attribute, style in _KNOWN:
        if protocol in protocols_of(kind) and hasattr(fs, attribute):
            return style
    if isinstance(fs, AsyncFileSystem) and kind._pipe_file is not AsyncFileSystem._pipe_file:
        # Object stores: a write is one request, or shows when the last request is done.
        return AccessStyle(_by_mode, _MOVE, staged_puts=False, staged_uploads=False)
    # fsspec's own pipe_file(mode="create") looks first and writes then, which is not atomic.
    if kind.pipe_file is not AbstractFileSystem.pipe_file:
        return AccessStyle(_by_mode, _MOVE, staged_puts=False, staged_uploads=True)
    moves = kind.mv is not AbstractFileSystem.mv  # the inherited one copies
    return AccessStyle(_by_exclusive_open, _MOVE, staged_puts=moves, staged_uploads=True)


def create_problem(style: AccessStyle) -> str:
    """Return why the installed fsspec cannot create as the style wants, or an empty string.

    fsspec before 2024.12 ignores ``mode="create"``, and replaces what is there.
    """
    import fsspec

    if style.create is not _by_mode or "mode" in inspect.signature(fsspec.AbstractFileSystem.pipe_file).parameters:
        return ""
    return f'fsspec {fsspec.__version__} does not know pipe_file(mode="create")'


def protocols_of(kind: type[Any]) -> tuple[str, ...]:
    """Return the schemes that a class of filesystems serves; a class that others are derived from may have none."""
    return (kind.protocol,) if isinstance(kind.protocol, str) else tuple(kind.protocol or ())


def _by_mode(fs: Any, path: str, data: bytes) -> None:
    fs.pipe_file(path, data, mode="create")


def _by_exclusive_open(fs: Any, path: str, data: bytes) -> None:
    # Without a `with` block: leaving one by an exception would publish what was written so far.
    file = fs.open(path, "xb")
    file.write(data)
    file.close()


def _sftp_read(fs: Any, path: str, start: int, end: int) -> bytes:
    with fs.open(path, "rb") as file:
        last = min(end, file.stat().st_size)
        if start >= last:
            return b""
        file.seek(start)
        # Otherwise each 32 KiB wait for the answer to the 32 KiB before.
        file.prefetch(last)
        data: bytes = file.read(last - start)
        return data


def write_views(file: Any, views: Sequence[memoryview]) -> None:
    """Write buffers one after the other into an open file."""
    if not hasattr(file, "set_pipelined"):
        for view in views:
            file.write(view)
        return
    # paramiko: writes do not wait for their answers, except for the last byte, whose write checks all answers.
    file.set_pipelined(True)
    for view in views[:-1]:
        file.write(view)
    file.write(views[-1][:-1])
    file.set_pipelined(False)
    file.write(views[-1][-1:])


def _sftp_claim(fs: Any, old: str, new: str) -> None:
    # SFTP's own rename never replaces: OpenSSH links the file to its new name. posix_rename does replace.
    fs.ftp.rename(old, new)


_MOVE = Rename(lambda fs, old, new: fs.mv(old, new), lambda fs, old, new: fs.mv(old, new))
_SFTP = AccessStyle(
    None,
    Rename(_sftp_claim, lambda fs, old, new: fs.mv(old, new)),
    staged_puts=True,
    staged_uploads=True,
    read=_sftp_read,
)
_WEBDAV = AccessStyle(
    None,
    Rename(
        lambda fs, old, new: fs.client.move(old, new, overwrite=False),
        lambda fs, old, new: fs.client.move(old, new, overwrite=True),
    ),
    staged_puts=True,
    staged_uploads=True,
)
_KNOWN = (("sftp", "ftp", _SFTP), ("webdav", "client", _WEBDAV))
