"""Decides which tensors of a rank have not changed for some saves, and which of their files the store may copy. Pure.

A tensor is settled when its bytes were the same in two saves one after the other. Settled tensors are put into files of
their own, so that such a file stays the same, byte for byte, from save to save, and can be copied from the previous
snapshot. Only the bytes decide what is copied; that a parameter takes no gradient only lets it be hashed one save
earlier.

Hashing everything would cost a dense model more than it saves. Each save therefore samples a few kilobytes of every
tensor, and hashes only those tensors whose sample did not change. A tensor that keeps changing is left alone, and
sampled again every 50th save.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

from checkpoint_sidecar.core.layout import settled_name
from checkpoint_sidecar.core.shared_files import MOST_FILES

LEAST_FILE_BYTES = 5 * 1024 * 1024
"""Minimum size of a settled file: smaller ones cost more requests than they save bytes."""
MOST_FILE_BYTES = 256 * 1024 * 1024
"""Maximum size of a settled file with several tensors: one that changes takes its file with it."""
MOST_CHANGES = 3
"""How many times in a row a tensor is found changed before it is left alone."""
SAVES_BETWEEN_LOOKS = 50

TensorPart: TypeAlias = tuple[str, tuple[int, ...]]
"""The name of a tensor in the state dict, and where the part that this rank saves begins in it."""


@dataclass(frozen=True, slots=True)
class SampledPart:
    """A tensor, or a part of one, that this rank saves now.

    Attributes:
        size: Bytes that it takes in a file.
        sample: Digest of a few of these bytes; empty if none was taken.
        frozen: Whether it is a parameter that takes no gradient.
    """

    part: TensorPart
    size: int
    sample: bytes
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class EarlierPart:
    """What an earlier save saw of a tensor.

    Attributes:
        sample: As above; empty if only the digest is known, from a snapshot that was restored.
        digest: Digest of all of its bytes in the file; empty if they were not hashed.
        changes: How many times in a row it was found changed.
    """

    sample: bytes = b""
    digest: bytes = b""
    changes: int = 0


@dataclass(frozen=True, slots=True)
class PartHistory:
    """What this rank knows of its tensors from earlier saves.

    Attributes:
        saves: How many saves were seen.
    """

    parts: Mapping[TensorPart, EarlierPart] = field(default_factory=dict)
    saves: int = 0


@dataclass(frozen=True, slots=True)
class SettledPart:
    """A tensor that did not change.

    Attributes:
        size, digest: Of its bytes in the file.
    """

    part: TensorPart
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SettledFile:
    """A file of settled tensors, which follow each other in this order.

    Attributes:
        name: In the folder of the save that stored it.
        copied_from: Name of a file of the base snapshot that has the same bytes; else empty.
    """

    name: str
    parts: tuple[SettledPart, ...]
    copied_from: str = ""

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(each.size for each in self.parts)


def history_of(files: Iterable[SettledFile]) -> PartHistory:
    """Return the history that begins with the settled files of a restored snapshot."""
    return PartHistory({each.part: EarlierPart(digest=each.digest) for file in files for each in file.parts})


def to_sample(part: TensorPart, history: PartHistory) -> bool:
    """Return whether to look at a tensor in this save."""
    earlier = history.parts.get(part)
    # Two looks in a row: the first one takes the sample with which the second one compares.
    return earlier is None or earlier.changes < MOST_CHANGES or history.saves % SAVES_BETWEEN_LOOKS in (0, 1)


def to_hash(parts: Iterable[SampledPart], history: PartHistory) -> list[SampledPart]:
    """Return the tensors that may be unchanged, so that all of their bytes must be compared."""
    return [each for each in parts if each.sample and _may_be_unchanged(each, history.parts.get(each.part))]


def _may_be_unchanged(found: SampledPart, earlier: EarlierPart | None) -> bool:
    if earlier is None:
        return found.frozen
    return earlier.sample == found.sample if earlier.sample else bool(earlier.digest)


def settle(
    parts: Iterable[SampledPart], digests: Mapping[TensorPart, bytes], history: PartHistory
) -> tuple[list[SettledPart], PartHistory]:
    """Return the settled tensors, in order, and what the next save has to know.

    A tensor that no earlier save knows is settled if it takes no gradient: its file is sent now, and copied by the next
    save if its bytes are then the same.

    Args:
        digests: Of the tensors of ``to_hash``.
    """
    settled: list[SettledPart] = []
    seen: dict[TensorPart, EarlierPart] = {}
    for each in parts:
        earlier = history.parts.get(each.part)
        digest = digests.get(each.part, b"")
        if not each.sample and earlier is not None:
            seen[each.part] = earlier
        elif digest and (_unknown(each, earlier) or (earlier is not None and earlier.digest == digest)):
            settled.append(SettledPart(each.part, each.size, digest))
            seen[each.part] = EarlierPart(each.sample, digest)
        elif earlier is None or (digest and not earlier.digest):
            seen[each.part] = EarlierPart(each.sample, digest)
        else:
            seen[each.part] = EarlierPart(each.sample, digest, earlier.changes + 1)
    return settled, PartHistory(seen, history.saves + 1)


def _unknown(found: SampledPart, earlier: EarlierPart | None) -> bool:
    """Return whether no save of this process knows a tensor that takes no gradient."""
    return found.frozen and (earlier is None or not earlier.sample)


def arrange(
    rank: int,
    settled: Sequence[SettledPart],
    base: Iterable[SettledFile],
    *,
    sharing: bool = False,
    most_files: int = MOST_FILES,
    least_bytes: int = LEAST_FILE_BYTES,
    most_bytes: int = MOST_FILE_BYTES,
) -> tuple[SettledFile, ...]:
    """Return the settled files of a save. Settled tensors that are in none of them are sent with those that change.

    A file of the base stays together as long as none of its tensors changes. All others are put into new files.

    Args:
        base: The rank's settled files in the snapshot whose files may be copied or shared.
        sharing: Files of the base are shared, so they keep their names.
        most_files: Maximum number of files.
        least_bytes: Minimum size of a file.
        most_bytes: Maximum size of a file with several tensors.
    """
    now = {each.part: each for each in settled}
    kept: list[SettledFile] = []
    for file in base:
        # The same digest means the same bytes, and therefore the same size.
        same = all((found := now.get(each.part)) and found.digest == each.digest for each in file.parts)
        if same and file.size >= least_bytes:
            kept.append(file)
            for each in file.parts:
                del now[each.part]
    groups = [(file.parts, file.name) for file in kept]
    groups += [(group, "") for group in _packed(list(now.values()), most_bytes) if _bytes(group) >= least_bytes]
    groups = groups[:most_files]
    taken = {copied_from for _, copied_from in groups if sharing}
    unused = (name for number in count() if (name := settled_name(rank, number)) not in taken)
    return tuple(
        SettledFile(copied_from if sharing and copied_from else next(unused), group, copied_from)
        for group, copied_from in groups
    )


def _packed(settled: Sequence[SettledPart], most_bytes: int) -> list[tuple[SettledPart, ...]]:
    groups: list[list[SettledPart]] = []
    size = 0
    for each in settled:
        if not groups or size + each.size > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(each)
        size += each.size
    return [tuple(group) for group in groups]


def _bytes(group: Iterable[SettledPart]) -> int:
    return sum(each.size for each in group)
