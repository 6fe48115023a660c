"""Where a box of a tensor lies in the bytes of the whole tensor, both in row-major order. Pure.

A box is a shard as one rank saved it. Its elements have the same order in its own memory as in the whole tensor's, so
whatever a span of the whole tensor needs of it is one contiguous span of its memory.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class TensorPart(Protocol):
    """A box of a tensor, as DCP's ``ChunkStorageMetadata`` describes one, too."""

    @property
    def offsets(self) -> Sequence[int]:
        """Position by dimension."""

    @property
    def sizes(self) -> Sequence[int]:
        """Shape."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box of elements of a tensor, not empty.

    Attributes:
        shape: Shape of the whole tensor.
        offsets, sizes: Position and shape of the box, by dimension.
    """

    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def run(self) -> int:
        """Number of elements that follow each other in the whole tensor, too."""
        return math.prod(self.sizes[self._outer :])

    @property
    def runs(self) -> int:
        """Number of runs."""
        return math.prod(self.sizes[: self._outer])

    @property
    def _outer(self) -> int:
        """The number of leading dimensions whose steps leave a gap in the whole tensor."""
        outer = len(self.shape)
        while outer and self.sizes[outer:] == self.shape[outer:]:
            outer -= 1
        return outer

    def position(self, run: int) -> int:
        """Return where a run begins in the whole tensor, in elements."""
        found, stride = 0, 1
        outer = self._outer
        for dimension in reversed(range(len(self.shape))):
            place = self.offsets[dimension]
            if dimension < outer:
                run, step = divmod(run, self.sizes[dimension])
                place += step
            found += place * stride
            stride *= self.shape[dimension]
        return found

    def within(self, start: int, stop: int) -> tuple[int, int]:
        """Return which elements of the box lie in a span of the whole tensor: first, and behind the last."""
        return self._before(start), self._before(stop)

    def spans(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Yield where elements of the box lie: position in the box, position in the whole tensor, and count.

        Args:
            first, last: Elements of the box: the first, and behind the last.
        """
        outer, run, runs = self._outer, self.run, self.runs
        step = math.prod(self.shape[outer:])
        row = self.sizes[outer - 1] if outer else 1
        number, inside = divmod(first, run)
        position = self.position(number) if first < last else 0
        while first < last:
            count = min(run - inside, last - first)
            yield first, position + inside, count
            first, number, inside = first + count, number + 1, 0
            # Runs of one row follow each other in equal steps.
            position = position + step if number % row or number == runs else self.position(number)

    def _before(self, element: int) -> int:
        """Count the elements of the box before an element of the whole tensor."""
        run, runs = self.run, range(self.runs)
        number = bisect_right(runs, element, key=self.position) - 1
        return 0 if number < 0 else number * run + min(element - self.position(number), run)


def tiles(size: Sequence[int], chunks: Iterable[TensorPart]) -> bool:
    """Return whether the chunks cover a tensor of this size exactly: in bounds, disjoint, and nothing left over."""
    solid = [chunk for chunk in chunks if math.prod(chunk.sizes)]
    if sum(math.prod(chunk.sizes) for chunk in solid) != math.prod(size):
        return False
    dimensions = range(len(size))
    for chunk in solid:
        if any(not 0 <= chunk.offsets[d] <= size[d] - chunk.sizes[d] for d in dimensions):
            return False
    if len(solid) < 2:
        return True
    # Sweep along the dimension that is cut most often: only chunks that overlap there are compared.
    sweep = max(dimensions, key=lambda d: len({chunk.offsets[d] for chunk in solid}))
    active: list[TensorPart] = []
    for chunk in sorted(solid, key=lambda chunk: chunk.offsets[sweep]):
        active = [other for other in active if other.offsets[sweep] + other.sizes[sweep] > chunk.offsets[sweep]]
        if any(_overlap(chunk, other) for other in active):
            return False
        active.append(chunk)
    return True


def _overlap(one: TensorPart, other: TensorPart) -> bool:
    return all(
        a < b + b_size and b < a + a_size
        for a, a_size, b, b_size in zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    )
