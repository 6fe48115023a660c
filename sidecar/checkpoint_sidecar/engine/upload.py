"""Writes the files of a snapshot: concurrent parts, bounded memory, checksums computed on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.engine.adaptive_pool import AdaptivePool
from checkpoint_sidecar.engine.budget import MemoryBudget
from checkpoint_sidecar.engine.checksums import block_checksums, of_blocks, of_parts, packed
from checkpoint_sidecar.engine.files import FilePlan, UploadPart, parts_of
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.store.base import Buffer, Store, Upload, VerifiesParts, WidensParts
from checkpoint_sidecar.store.common.parts import write_object


def upload_files(
    store: Store,
    folder: str,
    plans: Iterable[FilePlan],
    *,
    block_bytes: int,
    settings: EngineSettings,
    progress: TransferMeter | None = None,
) -> list[File]:
    """Write all files, or none: they become visible once every byte of all of them is stored.

    Args:
        folder: ``SaveFolder.path``; empty for the root.
        plans: The files. Memory that their segments refer to must not change during the upload.
        block_bytes: Block size of the checksums; it divides 4 MiB, and thereby every part.
        settings: Limits on concurrent parts, and on memory for segments that are not in memory yet.
        progress: Counts every part that is stored; may cancel the upload.

    Returns:
        The manifest's entry for each file, in order.

    Raises:
        BaseException: The first failure of any segment, part or upload; all uploads were aborted. A failure of the
            last step, publishing, may leave some of the files visible.
    """
    with ExitStack() as opened:
        uploads = opened.enter_context(_Uploads(settings, block_bytes, progress or TransferMeter()))
        try:
            files = []
            for plan in plans:
                key = f"{folder}/{plan.name}" if folder else plan.name
                upload = opened.enter_context(store.upload(key, plan.size))
                files.append((plan, uploads.send(plan, upload)))
            uploads.wait()
            uploads.publish()
        except BaseException as error:  # noqa: BLE001 - the first failure is raised
            uploads.fail(error)
        if uploads.first_error is not None:
            raise uploads.first_error
        return [_described(plan, [sums[index] for index in sorted(sums)]) for plan, sums in files]


def upload_bytes(store: Store, key: str, data: Buffer, *, block_bytes: int) -> File:
    """Write an object from memory and return its manifest entry.

    Raises:
        StoreError: The write failed. Nothing is visible, except perhaps after an ``UnknownOutcomeError``.
    """
    write_object(store, key, data)
    view = memoryview(data).cast("B")
    blocks = block_checksums([view], block_bytes)
    return File(key.rpartition("/")[2], view.nbytes, of_blocks(blocks, block_bytes, view.nbytes), packed(blocks))


@dataclass(frozen=True, slots=True)
class _PartChecksums:
    """Of one part, computed by the thread that sends it; those of the ``blocks`` as a manifest holds them."""

    size: int
    crc32c: int
    blocks: bytes


class _Uploads(AdaptivePool):
    """The files that are being uploaded."""

    def __init__(self, settings: EngineSettings, block_bytes: int, progress: TransferMeter) -> None:
        super().__init__(
            "upload",
            first=settings.threads_at_first,
            most=settings.connections,
            poll=progress.check,
            on_failure=self._abort,
        )
        self._budget = MemoryBudget(settings.memory_bytes)
        self._block_bytes = block_bytes
        self._progress = progress
        self._uploads: list[Upload] = []

    def send(self, plan: FilePlan, upload: Upload) -> dict[int, _PartChecksums]:
        """Start to write a file. Returns the dictionary that will hold the checksums of each part."""
        self._uploads.append(upload)
        if plan.in_memory and isinstance(upload, WidensParts):
            upload.widen_parts()
        self._progress.expect(plan.size)
        sums: dict[int, _PartChecksums] = {}
        for part in parts_of(plan, upload.part_bytes):
            # Memory is reserved in the order of the parts: a stream sends a part only after those before it, so they
            # must never wait for memory that a later part holds. A part in line must not hold any.
            if part.memory_bytes:
                self.wait_for_thread()
            self._budget.acquire(part.memory_bytes, meanwhile=self.check)
            self.start(self._send, part, upload, sums)
        return sums

    def publish(self) -> None:
        """Complete all files concurrently."""
        for upload in self._uploads:
            self.start(upload.complete)
        self.wait()

    def _abort(self) -> None:
        for upload in self._uploads:
            upload.abort()

    def _send(self, part: UploadPart, upload: Upload, sums: dict[int, _PartChecksums]) -> None:
        try:
            buffers = part.buffers()
            blocks = block_checksums(buffers, self._block_bytes)
            checksum = of_blocks(blocks, self._block_bytes, part.size)
            sums[part.index] = _PartChecksums(part.size, checksum, packed(blocks))
            if isinstance(upload, VerifiesParts):
                upload.expect(part.index, checksum)
            upload.write_part(part.index, buffers)
        finally:
            self._budget.release(part.memory_bytes)
        self._progress.add(part.size)


def _described(plan: FilePlan, parts: Sequence[_PartChecksums]) -> File:
    checksum = of_parts((part.crc32c for part in parts), (part.size for part in parts))
    return File(plan.name, plan.size, checksum, b"".join(part.blocks for part in parts))
