"""Writing files of a snapshot: many parts at a time, in bounded memory, with their checksums computed on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.engine.budget import MemoryBudget
from checkpoint_sidecar.engine.checksums import block_checksums, of_blocks
from checkpoint_sidecar.engine.files import FilePlan, Part, parts_of
from checkpoint_sidecar.engine.progress import Progress
from checkpoint_sidecar.engine.settings import EngineSettings
from checkpoint_sidecar.store.base import Buffer, Store, Upload
from checkpoint_sidecar.store.parts import write_object

_GLANCE_SECONDS = 0.2
"""How often somebody who waits looks whether the work was called off."""


def upload_files(
    store: Store,
    folder: str,
    plans: Iterable[FilePlan],
    *,
    block_bytes: int,
    settings: EngineSettings,
    progress: Progress | None = None,
) -> list[File]:
    """Write all files, or none: they become visible when every byte of all of them is stored.

    Args:
        folder: ``SaveFolder.path``.
        plans: What their segments hold in memory must not change meanwhile.
        block_bytes: Of the checksums; it divides 4 MiB, and thereby every part.
        settings: Parts that are sent at a time, and the memory for what is not in memory yet.
        progress: Told of every part that is stored.

    Returns:
        The manifest's line for each file, in their order.

    Raises:
        BaseException: The first failure, whatever it was, of any segment, part or upload; the others were aborted. A
            failure of the very last step, publishing, may leave some of the files visible.
    """
    with (
        ExitStack() as opened,
        ThreadPoolExecutor(settings.connections, thread_name_prefix="upload") as pool,
    ):
        work = _Work(pool, MemoryBudget(settings.memory_bytes), block_bytes, progress or Progress())
        try:
            files = []
            for plan in plans:
                upload = opened.enter_context(store.upload(f"{folder}/{plan.name}", plan.size))
                files.append((plan, work.send(plan, upload)))
            work.wait()
            work.publish()
        except BaseException as error:  # noqa: BLE001 - the first failure is raised
            work.fail(error)
        if work.first_error is not None:
            raise work.first_error
        return [
            _described(plan.name, plan.size, [each for index in sorted(sums) for each in sums[index]], block_bytes)
            for plan, sums in files
        ]


def upload_bytes(store: Store, key: str, data: Buffer, *, block_bytes: int) -> File:
    """Write one object that is in memory.

    Raises:
        StoreError: Nothing is visible, unless it is an ``UnknownOutcomeError``.
    """
    write_object(store, key, data)
    view = memoryview(data).cast("B")
    return _described(key.rpartition("/")[2], view.nbytes, block_checksums([view], block_bytes), block_bytes)


class _Work:
    """Parts under way. Its methods are called by one thread; the parts are sent by those of the pool."""

    def __init__(self, pool: ThreadPoolExecutor, budget: MemoryBudget, block_bytes: int, progress: Progress) -> None:
        self._pool = pool
        self._budget = budget
        self._block_bytes = block_bytes
        self._progress = progress
        self._uploads: list[Upload] = []
        self._pending: list[Future[None]] = []
        self._lock = threading.Lock()
        self.first_error: BaseException | None = None

    def send(self, plan: FilePlan, upload: Upload) -> dict[int, list[int]]:
        """Begin to write a file; returns where the checksums of each part's blocks will be."""
        self._uploads.append(upload)
        self._progress.expect(plan.size)
        sums: dict[int, list[int]] = {}
        for part in parts_of(plan, upload.part_bytes):
            # Here, in the order of the parts, and not by the sender: where the store takes a stream, a part that holds
            # memory waits for those before it, which must not wait for memory then.
            self._budget.acquire(part.memory_bytes, meanwhile=self._check)
            self._start(self._send, part, upload, sums)
        return sums

    def wait(self) -> None:
        """Return when everything that was begun is done."""
        while self._pending:
            self._check()
            self._pending = list(wait(self._pending, timeout=_GLANCE_SECONDS).not_done)
        self._check()

    def publish(self) -> None:
        """Complete all files, side by side."""
        for upload in self._uploads:
            self._start(upload.complete)
        self.wait()

    def fail(self, error: BaseException) -> None:
        """End all of it, if this is the first failure."""
        with self._lock:
            if self.first_error is not None:
                return
            self.first_error = error
        for upload in self._uploads:
            upload.abort()

    def _check(self) -> None:
        if self.first_error is not None:
            raise self.first_error
        self._progress.check()

    def _start(self, step: Callable[..., None], *arguments: object) -> None:
        self._pending.append(self._pool.submit(self._attempt, step, *arguments))

    def _attempt(self, step: Callable[..., None], *arguments: object) -> None:
        if self.first_error is not None:
            return
        try:
            step(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            self.fail(error)

    def _send(self, part: Part, upload: Upload, sums: dict[int, list[int]]) -> None:
        try:
            buffers = part.buffers()
            sums[part.index] = block_checksums(buffers, self._block_bytes)
            upload.write_part(part.index, buffers)
        finally:
            self._budget.release(part.memory_bytes)
        self._progress.add(part.size)


def _described(name: str, size: int, checksums: Sequence[int], block_bytes: int) -> File:
    packed = b"".join(checksum.to_bytes(4, "big") for checksum in checksums)
    return File(name, size, of_blocks(checksums, block_bytes, size), packed)
