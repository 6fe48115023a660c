"""What one rank knows of its tensors from earlier saves, and the files whose tensors did not change: copied or shared.

``core.unchanged`` decides; this module hashes, reads the lists in the files of a restored snapshot, and lets the store
copy. The digests are xxh3-128, which two different tensors share with a probability of 2^-128, at memory's speed.
CRC32C alone would not do: a long run compares 10^8 times, and one comparison in 2^32 would be wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from xxhash import xxh3_128

from checkpoint_sidecar.core import settled_files
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.manifest import File, Manifest
from checkpoint_sidecar.core.unchanged import (
    PartHistory,
    SampledPart,
    SettledFile,
    TensorPart,
    arrange,
    history_of,
    settle,
    to_hash,
    to_sample,
)
from checkpoint_sidecar.engine.delivery import Want
from checkpoint_sidecar.engine.files import Segment
from checkpoint_sidecar.engine.folders.sending import CopySource
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.engine.settled_copies import SettledCopies, may_copy
from checkpoint_sidecar.engine.settled_shares import shared_files
from checkpoint_sidecar.store.base import Store

logger = logging.getLogger(__name__)

_SAMPLE_BYTES = 4 * 1024
_END_BYTES = 64 * 1024
"""How much of a file is read first to find the list at its end."""
_HASHED_BYTES = 16 * 1024 * 1024
"""Maximum that is hashed at once: a tensor that is not in memory takes as much."""


@dataclass(frozen=True, slots=True)
class TensorArchive:
    """The bytes of a tensor as a file has them.

    Attributes:
        frozen: Whether it is a parameter that takes no gradient.
    """

    part: TensorPart
    segments: Sequence[Segment]
    frozen: bool = False

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)


class UnchangedFiles:
    """Memory of one rank from save to save. One save at a time may use it."""

    def __init__(self) -> None:
        self._history = PartHistory()
        self._base: tuple[SettledFile, ...] = ()
        self._source: CopySource | None = None
        self._restored: tuple[str, Manifest] | None = None
        self._files: tuple[SettledFile, ...] = ()
        self._next = CopySource("", 0)
        self._able = True

    def restored(self, path: str, manifest: Manifest) -> None:
        """Note that the state is that of a snapshot whose bytes were compared with their checksums.

        Args:
            path: The snapshot's folder.
        """
        self._restored = path, manifest

    def arrange(
        self,
        archives: Sequence[TensorArchive],
        *,
        store: Store,
        rank: int,
        copy_from: str,
        sharing: bool,
        most_files: int,
        block_bytes: int,
        settings: EngineSettings,
        meter: TransferMeter,
    ) -> tuple[SettledFile, ...]:
        """Return the settled files of a save.

        Args:
            archives: All tensors of this rank. Their memory must not change before the save has ended.
            copy_from: Folder of the snapshot whose files may be copied or shared, or empty.
            sharing: Share them instead of copying.
            most_files: Maximum number of settled files.
            block_bytes: Block size of the save's checksums.
            meter: May cancel.
        """
        self._files, self._next = (), CopySource("", block_bytes)
        if not sharing and self._able and not may_copy(store):
            self._give_up(store, rank)
        if not sharing and not self._able:
            return ()
        self._learn(store, rank, settings)
        history = self._history
        sampled = [
            SampledPart(each.part, each.size, _sample(each) if to_sample(each.part, history) else b"", each.frozen)
            for each in archives
        ]
        by_part = {each.part: each for each in archives}
        digests = {each.part: _digest(by_part[each.part], meter) for each in to_hash(sampled, history)}
        settled, self._history = settle(sampled, digests, history)
        source = self._source
        usable = source is not None and (source.path, source.block_bytes) == (copy_from, block_bytes)
        base = self._base if usable else ()
        self._files = arrange(rank, settled, base, sharing=sharing, most_files=most_files)
        return self._files

    def copied(
        self, store: Store, rank: int, folder: str, settings: EngineSettings, meter: TransferMeter
    ) -> list[File]:
        """Let the store copy files that are arranged so. Returns their entries; all other files have to be sent.

        Args:
            folder: ``SaveFolder.path`` of the save.

        Raises:
            TransferCancelledError: See ``TransferMeter.cancel``.
        """
        wanted = {each.name: each.copied_from for each in self._files if each.copied_from}
        if self._source is None or not wanted:
            return []
        copies = SettledCopies(store, self._source, folder, settings=settings, meter=meter)
        made = copies.made(wanted)
        if copies.refused:
            self._give_up(store, rank)
        return made

    def shared(self, store: Store, settings: EngineSettings) -> list[File]:
        """Return the entries of files that are arranged to be shared, and may be; all other files have to be sent."""
        wanted = [each.copied_from for each in self._files if each.copied_from]
        return [] if self._source is None else shared_files(store, self._source, wanted, settings=settings)

    def stored(self, files: Iterable[File]) -> None:
        """Note the manifest's entries of the files that the latest save has stored."""
        self._next = replace(self._next, files={file.name: file for file in files})

    def committed(self, path: str) -> None:
        """Note that the latest save is committed, so that the next one may copy or share its files.

        Args:
            path: The snapshot's folder.
        """
        self._base, self._source = self._files, replace(self._next, path=path)

    def forget(self) -> None:
        """Note that nothing is to be copied."""
        self._history, self._base, self._source, self._restored, self._files = PartHistory(), (), None, None, ()

    def _give_up(self, store: Store, rank: int) -> None:
        self._able = False
        if rank == 0:
            logger.warning("save.unchanged is Copy, but %s does not copy: every save sends all bytes", store.url)

    def _learn(self, store: Store, rank: int, settings: EngineSettings) -> None:
        """Read what this rank's files of the restored snapshot hold."""
        if self._restored is None:
            return
        (path, manifest), self._restored = self._restored, None
        own = [file for file in manifest.files if settled_files.rank_of(file.name) == rank]
        contents = Files(store, path, manifest, settings=settings)
        try:
            lists = _lists(contents, own)
        except CheckpointError as error:
            logger.warning(
                "sending files that may not have changed, because the restored ones are unreadable: %s", error
            )
            return
        found = (settled_files.decode(file.name, data, file.size) for file, data in zip(own, lists, strict=True))
        self._base = tuple(file for file in found if file is not None)
        self._source = CopySource(path, manifest.block_bytes, {file.name: file for file in own})
        self._history = history_of(self._base)


def _lists(contents: Files, files: Sequence[File]) -> list[bytes]:
    """Read the lists at the end of settled files."""
    ends = _ends(contents, files, [_END_BYTES for _ in files])
    lengths = [settled_files.length(end) or 0 for end in ends]
    longer = [index for index, end in enumerate(ends) if lengths[index] + settled_files.FOOTER_BYTES > len(end)]
    wanted = [lengths[index] + settled_files.FOOTER_BYTES for index in longer]
    for index, end in zip(longer, _ends(contents, [files[index] for index in longer], wanted), strict=True):
        ends[index] = end
    return [settled_files.list_in(end) for end in ends]


def _ends(contents: Files, files: Sequence[File], lengths: Sequence[int]) -> list[bytes]:
    if not files:
        return []
    spans = [
        ByteRange(max(0, file.size - size), min(file.size, size)) for file, size in zip(files, lengths, strict=True)
    ]
    ends = [bytearray(span.length) for span in spans]
    contents.read([Want(file.name, span, memoryview(end)) for file, span, end in zip(files, spans, ends, strict=True)])
    return [bytes(end) for end in ends]


def _sample(archive: TensorArchive) -> bytes:
    """Return a digest of some bytes from the beginning, the middle and the end of each segment."""
    found = xxh3_128()
    for segment in archive.segments:
        if segment.size <= 3 * _SAMPLE_BYTES:
            found.update(segment.view(0, segment.size))
            continue
        for start in (0, segment.size // 2, segment.size - _SAMPLE_BYTES):
            found.update(segment.view(start, start + _SAMPLE_BYTES))
    return found.digest()


def _digest(archive: TensorArchive, meter: TransferMeter) -> bytes:
    found = xxh3_128()
    for segment in archive.segments:
        for start in range(0, segment.size, _HASHED_BYTES):
            meter.check()
            found.update(segment.view(start, min(start + _HASHED_BYTES, segment.size)))
    return found.digest()
