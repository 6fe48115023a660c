"""The adapter over any fsspec filesystem: one that the caller created, or one that fsspec creates from a URL.

It uses the part of fsspec's interface that filesystems agree on: ``pipe_file``, ``cat_file``, ``open``, ``ls``,
``info`` and ``rm_file``. What a filesystem can do atomically is decided in ``styles``. Weaker than the other adapters:

- Timeouts and retries inside a request are the filesystem's own, so a request may take as long as it likes.
- A large object is written in order, and a part that fails fails the object.
- Modification times are as exact as the filesystem's, often to the second.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from checkpoint_sidecar.core.errors import (
    BucketNotFoundError,
    NoConditionalWriteError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    RequestRefusedError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject
from checkpoint_sidecar.store.common.calls import DEFAULT_TIMEOUTS, Calls, Timeouts, deleting
from checkpoint_sidecar.store.common.partial import LEFTOVER_SECONDS, PARTIAL_FOLDER
from checkpoint_sidecar.store.common.ranges import check_fits, truncated
from checkpoint_sidecar.store.fsspec.described import described
from checkpoint_sidecar.store.fsspec.faults import explain_filesystem
from checkpoint_sidecar.store.fsspec.styles import create_problem, style_of
from checkpoint_sidecar.store.fsspec.upload import FsspecUpload

USE_ANOTHER = (
    "Use a filesystem with an atomic exclusive create (docs/storage.md lists them), "
    "or an s3://, gs://, az:// or file:// URL without a filesystem."
)
USE_NEWER = (
    "Install fsspec 2024.12 or later, and the filesystem's package of that age; s3://, gs:// and az:// need neither."
)

_READ_BYTES = 32 * 1024 * 1024
_READ_TRIES = 5
_DELETES_AT_ONCE = 8


class FsspecStore:
    """A ``Store`` in a folder of an fsspec filesystem.

    Args:
        settings: With a filesystem, and a URL that this filesystem understands.
        timeouts: How long failed requests are repeated.
        on_page: Called with the number of entries of each folder that is listed.
    """

    def __init__(
        self,
        settings: StoreSettings,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        on_page: Callable[[int], None] = lambda _: None,
    ) -> None:
        fs = settings.filesystem
        self._settings = settings
        self._on_page = on_page
        self._root = str(fs._strip_protocol(settings.url)).rstrip("/")
        self._style = style_of(fs)
        self._lock = _lock_of(fs)
        self._concurrent = bool(fs.async_impl)
        self._leftovers_removed = False
        self.calls: Calls[Any] = Calls(
            settings, connect=lambda _: fs, errors=(Exception,), explain=explain_filesystem, timeouts=timeouts
        )

    def __reduce__(self) -> tuple[Callable[[StoreSettings], FsspecStore], tuple[StoreSettings]]:
        return _reconnected, (self._settings,)

    def __repr__(self) -> str:
        return f"FsspecStore({self.filesystem_name}, {self.url!r})"

    @property
    def url(self) -> str:
        return self._settings.url

    @property
    def filesystem_name(self) -> str:
        """See ``RestsOnFilesystem``."""
        return type(self._settings.filesystem).__name__

    def another_client(self) -> FsspecStore:
        """See ``RestsOnFilesystem``."""
        return _reconnected(self._settings)

    def put(self, key: str, data: Buffer) -> None:
        body = _bytes(data)
        try:
            self.calls.write("write", key, lambda fs: self._put(fs, key, body))
        except ObjectNotFoundError as error:
            raise self._no_bucket(error) from None

    def put_if_absent(self, key: str, data: Buffer) -> None:
        if problem := create_problem(self._style):
            raise NoConditionalWriteError("create", f"{self.url}/{key}", problem, USE_NEWER)
        body = _bytes(data)
        try:
            self.calls.create("create", key, lambda fs: self._create(fs, key, body))
        except ObjectNotFoundError as error:
            raise self._no_bucket(error) from None
        except RequestRefusedError as error:
            cause = f"{self.filesystem_name} has no exclusive create ({error.cause})"
            raise NoConditionalWriteError(error.operation, error.subject, cause, USE_ANOTHER) from None
        except StoreError as error:
            raise self._settled(error, key, body) from None

    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        return self.calls.run("read", key, lambda fs: self._get(fs, key, max_bytes))

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        views = [view for buffer in buffers if (view := buffer.cast("B"))]
        for view in views:
            for offset in range(0, view.nbytes, _READ_BYTES):
                piece = view[offset : offset + _READ_BYTES]
                self._read(key, start + offset, piece)
            start += view.nbytes

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            return self.calls.run("look up", key, lambda fs: self._info(fs, key))
        except ObjectNotFoundError:
            return None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        found = self.calls.run("list", prefix, lambda fs: list(self._walk(fs, folder, prefix, after)))
        return iter(sorted(found, key=lambda info: info.key))

    def upload(self, key: str, size: int) -> FsspecUpload:
        return FsspecUpload(self, key, size)

    def delete(self, keys: Iterable[str]) -> None:
        def delete(key: str) -> None:
            with contextlib.suppress(ObjectNotFoundError), deleting():
                self.calls.run("delete", key, lambda fs: self._delete(fs, key))

        if not self._concurrent:
            for key in keys:
                delete(key)
            return
        with ThreadPoolExecutor(_DELETES_AT_ONCE, thread_name_prefix="delete") as pool:
            for _ in pool.map(delete, keys):
                pass

    # For uploads

    @property
    def stages_uploads(self) -> bool:
        """Whether a large object is written as a temporary file first."""
        return self._style.staged_uploads

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the filesystem's lock: clients that are not asynchronous serve one thread at a time."""
        with contextlib.nullcontext() if self._concurrent else self._lock:
            yield

    def path(self, key: str) -> str:
        """The filesystem's path of a key."""
        return f"{self._root}/{key}" if key else self._root

    def open_partial(self, fs: Any) -> tuple[Any, str]:
        """A new temporary file, open for writing, and its path."""
        folder = self.path(PARTIAL_FOLDER)
        _make_folder(fs, folder)
        if not self._leftovers_removed:
            self._leftovers_removed = True
            self._remove_leftovers(fs)
        path = f"{folder}/{secrets.token_hex(16)}"
        return fs.open(path, "wb"), path

    def replace(self, fs: Any, partial: str, key: str, size: int) -> None:
        """Give a temporary file its name, replacing what has it."""
        self._check_size(fs, partial, size)
        self._parent(fs, key)
        self._style.rename.replace(fs, partial, self.path(key))

    # Requests

    def _put(self, fs: Any, key: str, body: bytes) -> None:
        with self.turn():
            if not self._style.staged_puts:
                self._parent(fs, key)
                fs.pipe_file(self.path(key), body)
                return
            with self._staged(fs, body) as partial:
                self.replace(fs, partial, key, len(body))

    def _create(self, fs: Any, key: str, body: bytes) -> None:
        with self.turn():
            if self._style.create is not None:
                self._parent(fs, key)
                self._style.create(fs, self.path(key), body)
                return
            with self._staged(fs, body) as partial:
                self._check_size(fs, partial, len(body))
                self._parent(fs, key)
                self._style.rename.claim(fs, partial, self.path(key))

    @contextlib.contextmanager
    def _staged(self, fs: Any, body: bytes) -> Iterator[str]:
        file, partial = self.open_partial(fs)
        try:
            file.write(body)
            file.close()
            yield partial
        finally:
            with contextlib.suppress(Exception):
                fs.rm_file(partial)

    def _check_size(self, fs: Any, path: str, size: int) -> None:
        fs.invalidate_cache()
        if (stored := fs.info(path)["size"]) != size:
            raise OSError(f"{stored} of {size} bytes were stored")

    def _get(self, fs: Any, key: str, max_bytes: int) -> StoredObject:
        # Size and bytes are two requests; between them another writer may replace the object.
        for _ in range(_READ_TRIES):
            info = self._info(fs, key)
            check_fits(info.size, max_bytes, f"{self.url}/{key}")
            data = b""
            if info.size:
                with self.turn():
                    data = self._style.read(fs, self.path(key), 0, info.size + 1)
            if len(data) == info.size:
                return StoredObject(info, data)
        raise StoreError(
            "read", f"{self.url}/{key}", f"it was replaced during each of {_READ_TRIES} reads", "Try again."
        )

    def _read(self, key: str, start: int, view: memoryview) -> None:
        end = start + view.nbytes

        def request(fs: Any) -> bool:
            try:
                with self.turn():
                    data = self._style.read(fs, self.path(key), start, end)
                if len(data) == view.nbytes:
                    view[:] = data
                    return True
            except FileNotFoundError:
                raise
            except Exception:
                # Object stores refuse a range that begins beyond the end.
                if self._info(fs, key).size >= end:
                    raise
                return False
            if self._info(fs, key).size >= end:
                raise OSError("the filesystem returned another number of bytes than it was asked for")
            return False

        if not self.calls.run("read a range of", key, request):
            raise truncated(view.nbytes, start, f"{self.url}/{key}")

    def _info(self, fs: Any, key: str) -> ObjectInfo:
        with self._lock:
            fs.invalidate_cache()
            found = fs.info(self.path(key))
            if found.get("type") == "directory":
                raise FileNotFoundError(key)
            return described(fs, key, found)

    def _walk(self, fs: Any, folder: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        with self._lock:
            fs.invalidate_cache()
            try:
                entries = fs.ls(self.path(folder), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return
        self._on_page(len(entries))
        above = f"{folder}/" if folder else ""
        for entry in entries:
            key = entry["name"].strip("/").removeprefix(self._root.strip("/")).strip("/")
            if key == folder or not key.startswith(above):
                continue
            if entry.get("type") == "directory":
                inside = f"{key}/"
                if key != PARTIAL_FOLDER and (inside.startswith(prefix) or prefix.startswith(inside)):
                    yield from self._walk(fs, key, prefix, after)
            elif key.startswith(prefix) and key > after:
                yield described(fs, key, entry)

    def _delete(self, fs: Any, key: str) -> None:
        with self.turn():
            fs.rm_file(self.path(key))

    def _parent(self, fs: Any, key: str) -> None:
        """Make the folders of a key, where folders exist."""
        if not self._concurrent:
            _make_folder(fs, self.path(key).rpartition("/")[0])

    def _remove_leftovers(self, fs: Any) -> None:
        """Delete the temporary files of writers that were killed long ago."""
        limit = time.time() - LEFTOVER_SECONDS
        with contextlib.suppress(Exception):
            for entry in fs.ls(self.path(PARTIAL_FOLDER), detail=True):
                if described(fs, "", entry).modified.timestamp() < limit:
                    fs.rm_file(entry["name"])

    # Errors

    def _no_bucket(self, error: StoreError) -> BucketNotFoundError:
        return BucketNotFoundError(
            error.operation, error.subject, "the bucket or folder does not exist", "Create it, or correct the URL."
        )

    def _settled(self, error: StoreError, key: str, body: bytes) -> StoreError:
        """Return the error of a failed create, decided by the object under the key.

        Clients report a taken name in many ways. Some repeat a request whose reply was lost, and find their own object.
        """
        try:
            held = self.get(key, max_bytes=len(body)).data
        except ObjectTooLargeError:
            held = None
        except StoreError:
            return error
        if held != body:
            return ObjectExistsError("create", error.subject, "the key is taken")
        return UnknownOutcomeError("create", error.subject, "the key holds these bytes, perhaps from this request")


def _bytes(data: Buffer) -> bytes:
    return bytes(memoryview(data).cast("B"))


def _lock_of(fs: Any) -> Any:
    """The lock of a filesystem object, which several stores may share."""
    return vars(fs).setdefault("_checkpoint_sidecar_lock", threading.RLock())


def _make_folder(fs: Any, folder: str) -> None:
    try:
        fs.makedirs(folder, exist_ok=True)
    except Exception:
        # Another writer has made it meanwhile; clients report that in many ways.
        fs.invalidate_cache()
        if not fs.isdir(folder):
            raise


def _reconnected(settings: StoreSettings) -> FsspecStore:
    fs = settings.filesystem
    fresh = type(fs)(*fs.storage_args, **fs.storage_options, skip_instance_cache=True)
    return FsspecStore(replace(settings, filesystem=fresh))
