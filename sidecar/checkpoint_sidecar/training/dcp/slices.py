"""Locates a slice of a row-major tensor in the tensor's bytes. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slice:
    """A box of elements of a contiguous tensor.

    Attributes:
        sizes: Shape of the whole tensor.
        offsets, lengths: Position and shape of the box, by dimension.
    """

    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the whole tensor, in elements."""
        return tuple(math.prod(self.sizes[dimension + 1 :]) for dimension in range(len(self.sizes)))

    @property
    def first(self) -> int:
        """Position of the first element in the whole tensor, in elements."""
        return sum(offset * stride for offset, stride in zip(self.offsets, self.strides, strict=True))

    @property
    def count(self) -> int:
        """Number of elements in the box."""
        return math.prod(self.lengths)

    @property
    def extent(self) -> int:
        """Number of elements of the whole tensor from the box's first to its last."""
        if not self.count:
            return 0
        return 1 + sum((length - 1) * stride for length, stride in zip(self.lengths, self.strides, strict=True))

    @property
    def contiguous(self) -> bool:
        """Whether the box has no gaps in memory."""
        return self.extent == self.count

    def split(self, limit: int) -> Iterator[Slice]:
        """Divide the box into boxes with an extent of at most ``limit`` elements or of a single one."""
        longest = next((d for d, length in enumerate(self.lengths) if length > 1), None)
        if self.extent <= limit or longest is None:
            yield self
            return
        half = self.lengths[longest] // 2
        for start, length in ((0, half), (half, self.lengths[longest] - half)):
            offsets, lengths = list(self.offsets), list(self.lengths)
            offsets[longest] += start
            lengths[longest] = length
            yield from Slice(self.sizes, tuple(offsets), tuple(lengths)).split(limit)
