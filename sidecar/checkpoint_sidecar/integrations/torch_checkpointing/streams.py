"""The files of checkpoints as streams: one that is stored when it is closed, and one that reads committed bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import TracebackType
from typing import Any

from checkpoint_sidecar.core.folder_index import IndexEntry
from checkpoint_sidecar.engine.delivery import Want
from checkpoint_sidecar.engine.files import SMALL_BYTES, Bytes
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.integrations.torch_checkpointing.lent import LentMemory


class PendingFile(io.RawIOBase):
    """Collects a file, which is stored when it is closed; an error in the block that writes it discards it.

    Args:
        store: Stores the contents.
        lent: Memory that stays as it is until then. All other bytes are copied.
    """

    def __init__(self, store: Callable[[list[Bytes]], None], lent: LentMemory) -> None:
        self._store = store
        self._lent = lent
        self._contents: list[Bytes] = []
        self._copied = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        lent = self._lent.find(view) if view.nbytes >= SMALL_BYTES else None
        if lent is None:
            self._copied += view
        else:
            self._contents += [Bytes(memoryview(self._copied)), Bytes(lent)]
            self._copied = bytearray()
        return view.nbytes

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._store([*self._contents, Bytes(memoryview(self._copied))])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._store = lambda _: None
        self.close()


class CommittedFile(io.RawIOBase):
    """The bytes of a committed file, read in ranges and verified.

    Attributes:
        size: How many bytes the file has.
    """

    def __init__(self, files: Files, entry: IndexEntry) -> None:
        self._files, self._entry = files, entry
        self._position = 0
        self.size = entry.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        if into:
            span = ByteRange(self._entry.offset + self._position, len(into))
            self._files.read([Want(self._entry.object, span, into)])
        self._position += len(into)
        return len(into)

    def readall(self) -> bytes:
        data = bytearray(max(0, self.size - self._position))
        self.readinto(data)
        return bytes(data)
