"""Plans which parts of an object a store copies by itself, and which are sent. Pure.

Stores copy ranges of objects into parts of a new one, but only parts of a least size, except for the last one. A file
begins with a header that only this process has: it is sent together with as many of the following bytes as a part
needs, and so is everything else that is too small or lies elsewhere. The plan sends as few bytes as possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from checkpoint_sidecar.store.base import COPIED_PART_BYTES, LEAST_PART_BYTES

MOST_PARTS = 10_000
"""S3's maximum for one object."""
SENT_PART_BYTES = 32 * 1024 * 1024

_LOOK_BACK = 3
"""To send three ranges in a row never pays: copying the middle one whole would need no bytes of its neighbors."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Bytes of an object, from ``start`` to before ``stop``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, order=True)
class ObjectPart:
    """A part of an object.

    Attributes:
        span: Its position.
        copied: Number of the range that the store copies it from; None if it is sent.
    """

    span: Span
    copied: int | None = None


@dataclass(frozen=True, slots=True)
class PartLimits:
    """Sizes of parts in bytes.

    Attributes:
        least: Minimum, except for the last part.
        copied, sent: Largest part of each kind; parts of twice the minimum are never divided.
    """

    least: int = LEAST_PART_BYTES
    copied: int = COPIED_PART_BYTES
    sent: int = SENT_PART_BYTES

    @classmethod
    def for_size(cls, size: int) -> PartLimits:
        """Return limits at which an object of ``size`` bytes without gaps between ranges has few enough parts."""
        each = -(-size * 4 // MOST_PARTS)
        return cls(copied=max(COPIED_PART_BYTES, each), sent=max(SENT_PART_BYTES, each))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A plan up to a range that is copied.

    Attributes:
        sent: Bytes sent so far.
        spare: Bytes that the end of the range may still give to what follows.
        range: Number of the range; -1 before the first one.
        start: Where the copy of it begins.
        before: The plan up to the range before.
        given: Bytes that the range before gives.
    """

    sent: int
    spare: int
    range: int
    start: int
    before: _Plan | None = None
    given: int = 0


def plan_parts(size: int, copyable: Sequence[Span], limits: PartLimits | None = None) -> list[ObjectPart]:
    """Return the parts of an object, one after the other.

    Args:
        size: Bytes of the object.
        copyable: Ranges that the store has somewhere, in order and without overlap. Shorter ones than a part are sent.
        limits: By default those of S3.
    """
    limits = limits or PartLimits.for_size(size)
    parts = _planned(size, copyable, limits)
    while len(parts) > MOST_PARTS:
        # So many ranges that small ones are not worth a part.
        limits = replace(limits, least=2 * limits.least)
        parts = _planned(size, copyable, limits)
    return parts


def _planned(size: int, copyable: Sequence[Span], limits: PartLimits) -> list[ObjectPart]:
    large = [(number, span) for number, span in enumerate(copyable) if span.length >= limits.least]
    plans: list[list[_Plan]] = [[_Plan(0, 0, -1, 0)]]
    for place, (number, span) in enumerate(large):
        found = [
            plan
            for earlier in range(max(0, place + 1 - _LOOK_BACK), place + 1)
            for before in plans[earlier]
            for plan in _extended(before, number, span, copyable, limits.least)
        ]
        plans.append(_best(found))
    ends = [plan for group in plans[-_LOOK_BACK:] for plan in group]
    last = min(ends, key=lambda plan: plan.sent + size - _end(plan, copyable))
    return list(_divided(_parts(last, size, copyable), limits))


def _extended(before: _Plan, number: int, span: Span, copyable: Sequence[Span], least: int) -> Iterator[_Plan]:
    """Yield the plan that also copies this range, if there is one."""
    gap = span.start - _end(before, copyable)
    lacking = max(least - gap, 0) if gap else 0
    given = min(lacking, before.spare)
    taken = lacking - given
    spare = span.length - taken - least
    if spare >= 0:
        # Nothing ever needs more than the least part.
        yield _Plan(before.sent + gap + lacking, min(spare, least), number, span.start + taken, before, given)


def _best(plans: list[_Plan]) -> list[_Plan]:
    """Return the plans to which no other is equal or better: fewer bytes, or more to spare."""
    kept: list[_Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.sent, -plan.spare)):
        if not kept or plan.spare > kept[-1].spare:
            kept.append(plan)
    return kept


def _end(plan: _Plan, copyable: Sequence[Span]) -> int:
    return copyable[plan.range].stop if plan.range >= 0 else 0


def _parts(last: _Plan, size: int, copyable: Sequence[Span]) -> list[ObjectPart]:
    parts: list[ObjectPart] = []
    follows, given = size, 0
    plan: _Plan | None = last
    while plan is not None:
        end = _end(plan, copyable) - given
        if end < follows:
            parts.append(ObjectPart(Span(end, follows)))
        if plan.range >= 0:
            parts.append(ObjectPart(Span(plan.start, end), plan.range))
        follows, given, plan = plan.start, plan.given, plan.before
    return parts[::-1]


def _divided(parts: list[ObjectPart], limits: PartLimits) -> Iterator[ObjectPart]:
    """Divide large parts evenly, into parts above the minimum."""
    for part in parts:
        largest = limits.sent if part.copied is None else limits.copied
        count = max(min(-(-part.span.length // largest), part.span.length // limits.least), 1)
        edges = [part.span.start + part.span.length * number // count for number in range(count + 1)]
        for start, stop in pairwise(edges):
            yield ObjectPart(Span(start, stop), part.copied)
