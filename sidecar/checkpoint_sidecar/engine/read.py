"""Reads ranges of a snapshot's files with concurrent requests, and verifies each before it counts as delivered."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from checkpoint_sidecar.core.errors import (
    CorruptSnapshotError,
    CutOffError,
    ObjectNotFoundError,
    TruncatedObjectError,
    UnreliableReadError,
)
from checkpoint_sidecar.core.manifest import File, Manifest
from checkpoint_sidecar.engine.adaptive_pool import AdaptivePool
from checkpoint_sidecar.engine.checksums import block_checksums
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.confirm import confirmed
from checkpoint_sidecar.engine.delivery import Assembly, Delivery, Want, plan_delivery, plan_waves
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.requests import ByteRange, RangeRequest, plan_requests
from checkpoint_sidecar.store.base import Store


class Files:
    """The files of one snapshot.

    Args:
        store: A store opened at the run's root.
        folder: The snapshot's folder, relative to the root; empty for the root.
        manifest: The committed manifest; None for files that no manifest lists.
        compare: Verify what the manifest lists.
        settings: Limits on concurrent requests and on memory for buffers.
        compared: Records the bytes that were verified.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        manifest: Manifest | None,
        *,
        settings: EngineSettings,
        compared: ComparedBytes | None = None,
        compare: bool = True,
    ) -> None:
        self._compared = compared
        self._store = store
        self._folder = folder
        self._files = {file.name: file for file in manifest.files} if manifest else None
        self._compares = compare and manifest is not None
        self._block_bytes = manifest.block_bytes if manifest is not None and compare else 1
        self._settings = settings

    def read(self, wants: Iterable[Want], *, staging_bytes: int = 0, progress: TransferMeter | None = None) -> None:
        """Deliver every wanted byte.

        Bytes that several wants share are read once. To compare, whole blocks are read, and one that differs is read
        again over fresh connections. Reading ends at the first failure: requests that have not begun are dropped, and
        the others are waited for.

        Args:
            staging_bytes: Memory, of that in ``settings``, for destinations that take all of their bytes at once; a
                larger one gets as much as it needs. Such destinations are served after all others.
            progress: Counts bytes as they are delivered; may cancel the reading.

        Raises:
            CorruptSnapshotError: A block's CRC32C differs, a file is missing, or bytes behind its end are wanted.
            StoreError: The store failed; this says nothing about the snapshot.
        """
        wants = list(wants)
        waves = plan_waves(wants, staging_bytes)
        staging = memoryview(bytearray(max(wave.staging_bytes for wave in waves)))
        for wave in waves:
            arriving: list[Want] = []
            complete: list[tuple[Assembly, memoryview]] = []
            for index, offset in wave.assembled.items():
                want = wants[index]
                data = staging[offset : offset + want.span.length]
                arriving.append(replace(want, into=data))
                if isinstance(want.into, Assembly):
                    complete.append((want.into, data))
            self._read([*(wants[index] for index in wave.ready), *arriving], len(staging), progress)
            for assembly, data in complete:
                assembly.deliver(data)

    def _read(self, wants: Iterable[Want], reserved_bytes: int, progress: TransferMeter | None) -> None:
        by_name: defaultdict[str, list[Want]] = defaultdict(list)
        for want in wants:
            by_name[want.name].append(want)
        tasks = [task for name, group in by_name.items() for task in self._tasks(name, group)]
        if not tasks:
            return
        largest = max(task.delivery.buffered_bytes for task in tasks)
        at_once = max((self._settings.memory_bytes - reserved_bytes) // max(largest, 1), 1)
        threads = min(self._settings.connections, at_once, len(tasks))
        buffer = _ReusedBuffer()
        poll = progress.check if progress else lambda: None
        with AdaptivePool("read", first=self._settings.threads_at_first, most=threads, poll=poll) as pool:
            for task in tasks:
                pool.start(task.run, buffer, progress)
            pool.wait()

    def _tasks(self, name: str, wants: Sequence[Want]) -> Iterator[_Task]:
        spans = [want.span for want in wants]
        file = self._files[name] if self._files is not None else None
        key = file.key(self._folder) if file else f"{self._folder}/{name}" if self._folder else name
        if file is not None:
            _check_bounds(key, spans, file.size)
        size = file.size if file is not None else None
        requests = plan_requests(spans, block_bytes=self._block_bytes, size=size)
        in_memory = [isinstance(want.into, memoryview) for want in wants]
        for request in requests:
            delivery = plan_delivery(request, in_memory.__getitem__)
            compared_with = file if self._compares else None
            yield _Task(self._store, key, compared_with, self._block_bytes, wants, request, delivery, self._compared)


class _ReusedBuffer(threading.local):
    """A buffer for each thread, which all of its requests use."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def take(self, size: int) -> memoryview:
        if len(self._memory) < size:
            self._memory = bytearray()  # frees the old one before the new one is allocated
            self._memory = bytearray(size)
        return memoryview(self._memory)


@dataclass(frozen=True, slots=True)
class _Task:
    """One request of one file; ``file`` is None when nothing is verified."""

    store: Store
    key: str
    file: File | None
    block_bytes: int
    wants: Sequence[Want]
    request: RangeRequest
    delivery: Delivery
    compared: ComparedBytes | None

    def run(self, buffer: _ReusedBuffer, progress: TransferMeter | None) -> None:
        buffers = list(self._buffers(buffer.take(self.delivery.buffered_bytes)))
        confirmed(self.store, lambda: self._fetch(self.request.span.start, buffers))
        if self.file is not None:
            for block in self._damaged(self.file, buffers):
                self._read_again(self.file, block, buffers)
            if self.compared is not None:
                self.compared.mark(self.file.name, self.request.span)
        self._copy(buffers)
        if progress:
            progress.add(sum(piece.span.length for piece in self.request.pieces))

    def _buffers(self, reused: memoryview) -> Iterator[memoryview]:
        used = 0
        for slot in self.delivery.slots:
            if slot.want is None:
                yield reused[used : used + slot.span.length]
                used += slot.span.length
            else:
                want = self.wants[slot.want]
                assert isinstance(want.into, memoryview)  # or it would have no slot
                start = slot.span.start - want.span.start
                yield want.into[start : start + slot.span.length]

    def _fetch(self, start: int, buffers: Sequence[memoryview]) -> None:
        try:
            self.store.read_into(self.key, start, buffers)
        except ObjectNotFoundError as error:
            raise missing(self.key) from error
        except TruncatedObjectError as error:
            raise CorruptSnapshotError("read a range of", self.key, error.cause, evidence="SizeMismatch") from error
        except CutOffError as error:
            # The adapter has retried for a long time, and yet the manifest could be read.
            cause, hint = f"{error.cause}, in each of several tries", "Check the gateways in front of the store."
            raise UnreliableReadError("read a range of", self.key, cause, hint) from error

    def _damaged(self, file: File, buffers: Sequence[memoryview]) -> list[int]:
        """Return the blocks whose bytes differ from what was committed."""
        first = self.request.span.start // self.block_bytes
        checksums = enumerate(block_checksums(buffers, self.block_bytes), first)
        return [block for block, checksum in checksums if checksum != file.block_checksum(block)]

    def _read_again(self, file: File, block: int, buffers: Sequence[memoryview]) -> None:
        """Read a block that arrived damaged again, and raise an error if it is damaged in the store."""
        start = block * self.block_bytes
        end = min(start + self.block_bytes, file.size)
        window = list(_window(buffers, start - self.request.span.start, end - start))

        def compare() -> None:
            (checksum,) = block_checksums(window, self.block_bytes)
            if checksum != file.block_checksum(block):
                raise CorruptSnapshotError(
                    "read a range of",
                    self.key,
                    f"the CRC32C of bytes {start} to {end} is {checksum:08x}, but {file.block_checksum(block):08x} was "
                    "committed",
                    evidence="ChecksumMismatch",
                )

        def fetch_and_compare() -> None:
            self._fetch(start, window)
            compare()

        try:
            compare()
        except CorruptSnapshotError as error:
            confirmed(self.store, fetch_and_compare, found=error)

    def _copy(self, buffers: Sequence[memoryview]) -> None:
        """Copy the pieces that were received outside their destinations."""
        slots = self.delivery.slots
        starts = [slot.span.start for slot in slots]
        for piece in self.delivery.copies:
            want, position = self.wants[piece.want], piece.span.start
            number = bisect_right(starts, position) - 1
            while position < piece.span.end:
                slot = slots[number].span
                stop = min(slot.end, piece.span.end)
                data = buffers[number][position - slot.start : stop - slot.start]
                offset = position - want.span.start
                if isinstance(want.into, memoryview):
                    want.into[offset : offset + len(data)] = data
                else:
                    assert not isinstance(want.into, Assembly)  # assemblies are received in staging memory
                    want.into.accept(offset, data)
                position, number = stop, number + 1


def _window(buffers: Sequence[memoryview], start: int, length: int) -> Iterator[memoryview]:
    """Yield the parts of consecutive buffers that hold these bytes."""
    for buffer in buffers:
        part = buffer.cast("B")[max(start, 0) : max(start + length, 0)]
        if part:
            yield part
        start -= buffer.nbytes


def missing(key: str) -> CorruptSnapshotError:
    """Return the error for an object of a snapshot that does not exist."""
    return CorruptSnapshotError("read the file", key, "it does not exist", evidence="MissingObject")


def _check_bounds(key: str, spans: Iterable[ByteRange], size: int) -> None:
    for span in spans:
        if span.end > size:
            raise CorruptSnapshotError(
                "read a range of",
                key,
                f"bytes {span.start} to {span.end} were requested, but the file has {size} bytes",
                evidence="ManifestMismatch",
            )
