"""Which bytes of an object a store copies, and which are sent."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.exports.parts import MOST_PARTS, ObjectPart, PartLimits, Span, plan_parts

LIMITS = PartLimits(least=4, copied=12, sent=9)


def shown(parts: list[ObjectPart]) -> str:
    """Each part as its length, copied ones with the number of their range."""
    return " ".join(
        f"{part.span.length}" if part.copied is None else f"{part.span.length}@{part.copied}" for part in parts
    )


@pytest.mark.parametrize(
    ("size", "ranges", "plan"),
    [
        pytest.param(0, [], "", id="an empty object has no parts"),
        pytest.param(3, [], "3", id="a last part may be small"),
        pytest.param(20, [(0, 20)], "10@0 10@0", id="a long range is copied in several parts"),
        pytest.param(21, [(1, 21)], "4 8@0 9@0", id="the header is sent with the beginning of the first range"),
        pytest.param(12, [(1, 11)], "4 7@0 1", id="an end of any size is sent as it is"),
        pytest.param(8, [(2, 8)], "4 4@0", id="a range may give all but the least part"),
        pytest.param(8, [(3, 8)], "4 4@0", id="the header needs little"),
        pytest.param(7, [(1, 7)], "7", id="a range that would become too small is sent"),
        pytest.param(19, [(0, 9), (10, 19)], "6@0 4 9@1", id="a gap takes what the range before it can spare"),
        pytest.param(14, [(0, 4), (5, 14)], "4@0 4 6@1", id="or the range after it"),
        pytest.param(10, [(0, 3), (3, 10)], "4 6@1", id="a range below the least part is not copied"),
        pytest.param(12, [(0, 6), (6, 12)], "6@0 6@1", id="ranges that touch need nothing between them"),
    ],
)
def test_a_plan_sends_what_cannot_be_copied(size: int, ranges: list[tuple[int, int]], plan: str) -> None:
    assert shown(plan_parts(size, [Span(*each) for each in ranges], LIMITS)) == plan


@st.composite
def objects(draw: st.DrawFn) -> tuple[int, list[Span]]:
    ranges, at = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 14)), max_size=7)):
        ranges.append(Span(at + gap, at + gap + length))
        at += gap + length
    return at + draw(st.integers(0, 6)), ranges


def least_sent(size: int, ranges: list[Span], least: int) -> int:
    """Try every plan."""

    @cache
    def from_here(at: int) -> int:
        if at == size:
            return 0
        costs = [size - at]
        for end in range(at + least, size + 1):
            costs.append(end - at + from_here(end))
            if any(each.start <= at and end <= each.stop for each in ranges):
                costs.append(from_here(end))
        return min(costs)

    return from_here(0)


@given(objects())
def test_no_plan_sends_less_and_every_plan_is_allowed(drawn: tuple[int, list[Span]]) -> None:
    size, ranges = drawn
    parts = plan_parts(size, ranges, LIMITS)
    at = 0
    for part in parts:
        assert part.span.start == at
        at = part.span.stop
        assert part.span.length >= LIMITS.least or part is parts[-1]
        if part.copied is None:
            assert part.span.length <= max(LIMITS.sent, 2 * LIMITS.least)
        else:
            assert ranges[part.copied].start <= part.span.start <= part.span.stop <= ranges[part.copied].stop
            assert part.span.length <= max(LIMITS.copied, 2 * LIMITS.least)
    assert at == size
    assert sum(part.span.length for part in parts if part.copied is None) == least_sent(size, ranges, LIMITS.least)


def test_an_object_of_five_terabytes_has_as_many_parts_as_s3_allows() -> None:
    size = 5 * 1024**4
    for ranges in ([], [Span(1000, size)], [Span(at, at + 10**9) for at in range(0, size - 10**9, 10**9 + 1)]):
        assert len(plan_parts(size, ranges)) <= MOST_PARTS
