"""Names and sizes of files that snapshots share, in few characters.

Snapshots share only settled files, ``__<rank>_s<n>.distcp``. In most jobs each rank has the same number of them, of the
same sizes, so the log lists runs: ``0-1023:0-3`` stands for the files 0 to 3 of the ranks 0 to 1023. Runs are separated
by spaces; those of one ``n`` come before those of larger ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Annotated

import msgspec

from checkpoint_sidecar.core.layout import settled_name, settled_place
from checkpoint_sidecar.core.wire import Count, Positive

MOST_FILES = 4096
"""Maximum number of files that a snapshot shares, or a purge keeps: log entries are small."""

_CACHED = 64
"""Lists that are kept as sets: the names of one list take up to half a megabyte."""

_RUN = r"(?:0|[1-9][0-9]{0,8})(?:-[1-9][0-9]{0,8})?"
FileRuns = Annotated[str, msgspec.Meta(max_length=128 * 1024, pattern=rf"^(?:{_RUN}:{_RUN}(?: {_RUN}:{_RUN})*)?\Z")]
"""Names as runs; empty for none."""


class SharedFiles(msgspec.Struct, frozen=True, rename="camel"):
    """Files of one snapshot that another one needs.

    Attributes:
        snapshot: The snapshot that stored them. It may be purged except for them.
        sizes: Of the files in order of rank and number: a size, and how many files in a row have it.
    """

    snapshot: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    files: FileRuns
    sizes: tuple[tuple[Count, Positive], ...]

    def __post_init__(self) -> None:
        if not 0 < self.count == count_of(self.files) <= MOST_FILES:
            raise ValueError(f"the sizes of {self.count} files are listed")

    @classmethod
    def of(cls, snapshot: str, sizes: Mapping[str, int]) -> SharedFiles:
        """Return these files of a snapshot.

        Args:
            sizes: By name; at least one, and no other names than those of settled files.
        """
        ordered = (sizes[name] for name in sorted(sizes, key=_number_of))
        return cls(snapshot, runs_of(sizes), tuple((size, len(list(same))) for size, same in groupby(ordered)))

    @property
    def count(self) -> int:
        return sum(count for _, count in self.sizes)

    @property
    def bytes(self) -> int:
        return sum(size * count for size, count in self.sizes)

    @property
    def by_name(self) -> Mapping[str, int]:
        """The size of each file."""
        return _sizes(self)


def most_files_of(rank: int, world_size: int) -> int:
    """Return how many files one rank may share, so that all ranks together share at most ``MOST_FILES``."""
    return MOST_FILES // world_size + (rank < MOST_FILES % world_size)


def runs_of(names: Iterable[str]) -> str:
    """Return names of settled files as runs. Equal sets give equal text."""
    by_rank: defaultdict[int, list[int]] = defaultdict(list)
    for rank, number in sorted(_number_of(name) for name in names):
        by_rank[rank].append(number)
    ranks: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for rank, numbers in by_rank.items():
        for run in _runs(numbers):
            ranks[run].append(rank)
    return " ".join(
        f"{_text(*each)}:{_text(*numbers)}" for numbers, found in sorted(ranks.items()) for each in _runs(found)
    )


@lru_cache(maxsize=_CACHED)
def names_in(runs: str) -> frozenset[str]:
    """Return the names that runs stand for.

    Raises:
        ValueError: They are more than ``MOST_FILES``.
    """
    if count_of(runs) > MOST_FILES:
        raise ValueError(f"more than {MOST_FILES} files are listed")
    return frozenset(
        settled_name(rank, number)
        for ranks, numbers in _parsed(runs)
        for rank in range(ranks[0], ranks[1] + 1)
        for number in range(numbers[0], numbers[1] + 1)
    )


def count_of(runs: str) -> int:
    """Return for how many names runs stand, if none occurs twice."""
    return sum(max(a[1] - a[0] + 1, 0) * max(b[1] - b[0] + 1, 0) for a, b in _parsed(runs))


def _number_of(name: str) -> tuple[int, int]:
    place = settled_place(name)
    if place is None:
        raise ValueError(f"{name!r} is not the name of a settled file")
    return place


@lru_cache(maxsize=_CACHED)
def _sizes(shared: SharedFiles) -> Mapping[str, int]:
    ordered = (size for size, count in shared.sizes for _ in range(count))
    # Runs that overlap stand for fewer names than sizes; those have no writer.
    return dict(zip(sorted(names_in(shared.files), key=_number_of), ordered, strict=False))


def _parsed(runs: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for each in runs.split():
        ranks, _, numbers = each.partition(":")
        yield _bounds(ranks), _bounds(numbers)


def _bounds(run: str) -> tuple[int, int]:
    first, _, last = run.partition("-")
    return int(first), int(last or first)


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of the numbers that follow each other; they are in order."""
    first = last = -1
    for number in numbers:
        if first >= 0 and number != last + 1:
            yield first, last
            first = number
        elif first < 0:
            first = number
        last = number
    if first >= 0:
        yield first, last


def _text(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"
