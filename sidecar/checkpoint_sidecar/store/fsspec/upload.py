"""Writes large objects through an fsspec filesystem: one part after the other, into one open file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.store.common.parts import PartedUpload
from checkpoint_sidecar.store.fsspec.styles import write_views

if TYPE_CHECKING:
    from checkpoint_sidecar.store.fsspec.adapter import FsspecStore


class FsspecUpload(PartedUpload):
    """An object that is written in order; a part waits for the parts before it."""

    def __init__(self, store: FsspecStore, key: str, size: int) -> None:
        super().__init__(f"{store.url}/{key}", size)
        self._store = store
        self._key = key
        self._only_part: Sequence[memoryview] = ()
        self._file: Any = None
        self._partial = ""
        self._next = 0
        self._failed = False

    def _write(self, index: int, views: Sequence[memoryview]) -> None:
        if self._in_one_request:
            self._only_part = views
            return
        with self._changed:
            self._changed.wait_for(lambda: index == self._next or self._failed or not self._open)
            if not self._open:
                raise self._aborted()
            if self._failed:
                raise StoreError("upload", self._subject, "an earlier part could not be written", "Save again.")
        try:
            operation = f"upload part {index + 1} of"
            self._store.calls.once(operation, self._key, lambda fs: self._append(fs, views))
        except BaseException:
            self._failed = True
            raise
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()

    @property
    def _in_one_request(self) -> bool:
        return self._parts <= 1 and not self._store.stages_uploads

    def _append(self, fs: Any, views: Sequence[memoryview]) -> None:
        with self._store.turn():
            self._open_file(fs)
            write_views(self._file, views)

    def _open_file(self, fs: Any) -> None:
        if self._file is not None:
            return
        if self._store.stages_uploads:
            self._file, self._partial = self._store.open_partial(fs)
        else:
            self._file = fs.open(self._store.path(self._key), "wb", block_size=self._part_bytes)

    def _publish(self) -> None:
        self._store.calls.once("complete the upload of", self._key, self._finish)

    def _finish(self, fs: Any) -> None:
        with self._store.turn():
            if self._in_one_request:
                fs.pipe_file(self._store.path(self._key), b"".join(self._only_part))
                return
            self._open_file(fs)
            self._file.close()
            if self._partial:
                self._store.replace(fs, self._partial, self._key, self._size)

    def _interrupt(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _discard(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(Exception), self._store.turn():
            # Closing would publish; and a buffered file that is not marked as closed publishes when it is collected.
            getattr(self._file, "discard", self._file.close)()
        with contextlib.suppress(AttributeError):
            self._file.closed = True
        if self._partial:
            with contextlib.suppress(Exception):
                self._store.calls.once("abort the upload of", self._key, self._remove_partial)

    def _remove_partial(self, fs: Any) -> None:
        with self._store.turn():
            fs.rm_file(self._partial)
