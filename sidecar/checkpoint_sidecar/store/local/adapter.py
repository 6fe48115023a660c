"""The adapter for a local or mounted file system. Durable: files and the folders that name them are synced to the disk.

fsspec's local file system has neither an atomic create-only write nor a sync, which are all that matters here.

An object is written to a file of its own in ``.partial`` under the root and gets its name only when it is whole: by
``link``, which fails if the name is taken, or by ``rename``, which replaces. Leftovers of killed writers stay in that
folder, which no listing shows, until a later writer finds them more than a day old.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    NoConditionalWriteError,
    ObjectExistsError,
    ObjectNotFoundError,
    RequestRefusedError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject
from checkpoint_sidecar.store.common.calls import deleting
from checkpoint_sidecar.store.common.partial import LEFTOVER_SECONDS, PARTIAL_FOLDER
from checkpoint_sidecar.store.common.parts import PartedUpload
from checkpoint_sidecar.store.common.ranges import check_fits, truncated
from checkpoint_sidecar.store.local.bodies import read_into, reserve, write_from

_PUBLISH_TRIES = 10

_DENIED = (AccessDeniedError, "Let this user read and write under the folder.")
_FULL = (RequestRefusedError, "Free space on the file system.")
_NOT_FOUND = (ObjectNotFoundError, "")
_FAULTS: dict[int, tuple[type[StoreError], str]] = {
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.ENOENT: _NOT_FOUND,
    errno.EISDIR: _NOT_FOUND,
    errno.EEXIST: (ObjectExistsError, ""),
    errno.ENOTDIR: (ObjectNotFoundError, "A file has the name of one of the key's folders."),
    errno.ENAMETOOLONG: (RequestRefusedError, "Use a shorter path."),
}
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


class LocalStore:
    """A ``Store`` in a folder, which is created by the first write."""

    def __init__(self, settings: StoreSettings) -> None:
        location = parse_url(settings.url)
        self._settings = settings
        self._url = location.url
        self._root = Path("/", location.path)
        self._leftovers_removed = False

    def __reduce__(self) -> tuple[type[LocalStore], tuple[StoreSettings]]:
        return type(self), (self._settings,)

    def __repr__(self) -> str:
        return f"LocalStore({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    def put(self, key: str, data: Buffer) -> None:
        with self._explained("write", key), self._partial() as partial:
            partial.write(data)
            self._publish(partial, key)

    def put_if_absent(self, key: str, data: Buffer) -> None:
        with self._explained("create", key), self._partial() as partial:
            partial.write(data)
            self._publish(partial, key, replace=False)

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        with self._explained("read", key), self._path(key).open("rb") as file:
            info = _info(key, os.fstat(file.fileno()))
            check_fits(info.size, max_bytes, f"{self._url}/{key}")
            return StoredObject(info, file.read(info.size))

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        with self._explained("read a range of", key), self._path(key).open("rb") as file:
            length = sum(buffer.nbytes for buffer in buffers)
            read = read_into(file.fileno(), start, buffers)
        if read != length:
            raise truncated(length, start, f"{self._url}/{key}")

    def stat(self, key: str) -> ObjectInfo | None:
        with self._explained("look up", key):
            path = self._path(key)
            try:
                return _info(key, path.stat()) if path.is_file() else None
            except FileNotFoundError:
                return None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        with self._explained("list", prefix):
            folder = self._path(prefix.rpartition("/")[0])
            return iter(sorted(self._walk(folder, prefix, after), key=lambda info: info.key))

    def upload(self, key: str, size: int) -> _Upload:
        with self._explained("upload", key):
            partial = self._open_partial()
            try:
                reserve(partial.fileno(), size)
            except BaseException:
                _throw_away(partial)
                raise
            return _Upload(self, key, size, partial)

    def link(self, key: str, source_key: str) -> ObjectInfo:
        """See ``LinksObjects``."""
        target = self._path(key)
        with self._explained("link", key):
            _make_folder(target.parent)
            try:
                os.link(self._path(source_key), target)
            except OSError as error:
                if error.errno in _NO_LINKS:
                    cause = "this file system has no hard links, or this file has too many"
                    raise RequestRefusedError("link", f"{self._url}/{key}", cause) from error
                raise
            _sync_folder(target.parent)
            return _info(key, target.stat())

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with deleting(), self._explained("delete", key):
                path = self._path(key)
                path.unlink(missing_ok=True)
                self._remove_empty(path.parent)

    def _path(self, key: str) -> Path:
        if ".." in key.split("/") or key.startswith("/"):
            raise ValueError(f"{key!r} is not a key")
        return self._root / key

    def _walk(self, folder: Path, prefix: str, after: str) -> Iterator[ObjectInfo]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                key = os.path.relpath(entry.path, self._root)
                # A linked folder has keys of its own, or leads around in a circle.
                if entry.is_dir(follow_symlinks=False):
                    # Folders are entered that can hold the prefix, or lie below it.
                    inside = f"{key}/"
                    if key != PARTIAL_FOLDER and (inside.startswith(prefix) or prefix.startswith(inside)):
                        yield from self._walk(Path(entry.path), prefix, after)
                elif key.startswith(prefix) and key > after and (status := _file(entry)) is not None:
                    yield _info(key, status)

    def _open_partial(self) -> BinaryIO:
        folder = self._root / PARTIAL_FOLDER
        _make_folder(folder)
        if not self._leftovers_removed:
            self._leftovers_removed = True
            _remove_leftovers(folder)
        return (folder / secrets.token_hex(16)).open("xb")

    @contextlib.contextmanager
    def _partial(self) -> Iterator[BinaryIO]:
        with self._open_partial() as file:
            try:
                yield file
            finally:
                Path(file.name).unlink(missing_ok=True)

    def _publish(self, partial: BinaryIO, key: str, *, replace: bool = True) -> None:
        partial.flush()
        os.fsync(partial.fileno())
        target = self._path(key)
        for remaining in reversed(range(_PUBLISH_TRIES)):
            try:
                _make_folder(target.parent)
                if replace:
                    os.replace(partial.name, target)
                else:
                    os.link(partial.name, target)
            except FileNotFoundError:
                # A concurrent delete took the folder away while it was empty.
                if not remaining:
                    raise
            except OSError as error:
                if not replace and error.errno in _NO_LINKS:
                    raise NoConditionalWriteError(
                        "create", f"{self._url}/{key}", "this file system has no hard links", "Use another file system."
                    ) from error
                raise
            else:
                break
        try:
            with contextlib.suppress(FileNotFoundError):  # deleted again already, the folder with it
                _sync_folder(target.parent)
        except OSError as error:
            raise UnknownOutcomeError(
                "write", f"{self._url}/{key}", f"the folder was not synced to the disk: {error.strerror}"
            ) from error

    def _remove_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent

    @contextlib.contextmanager
    def _explained(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind, hint = _FAULTS.get(error.errno or 0, (StoreError, ""))
            raise kind(operation, f"{self._url}/{key}", os.strerror(error.errno or errno.EIO), hint) from error


class _Upload(PartedUpload):
    """Writes every part at its position in one file."""

    def __init__(self, store: LocalStore, key: str, size: int, partial: BinaryIO) -> None:
        super().__init__(f"{store.url}/{key}", size)
        self._store = store
        self._key = key
        self._partial = partial

    def _write(self, index: int, views: Sequence[memoryview]) -> None:
        with self._store._explained("upload", self._key):
            write_from(self._partial.fileno(), index * self._part_bytes, views)

    def _publish(self) -> None:
        with self._store._explained("complete the upload of", self._key):
            self._store._publish(self._partial, self._key)
            self._partial.close()

    def _interrupt(self) -> None:
        pass

    def _discard(self) -> None:
        _throw_away(self._partial)


def _throw_away(partial: BinaryIO) -> None:
    with contextlib.suppress(OSError):
        os.unlink(partial.name)
    with contextlib.suppress(OSError):
        partial.close()


def _file(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return the status of the file that a name refers to, directly or by a link; None for anything else."""
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, dt.datetime.fromtimestamp(status.st_mtime, dt.UTC))


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    limit = time.time() - LEFTOVER_SECONDS
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
