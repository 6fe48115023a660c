"""The plan of reads: every wanted byte once, in few requests, of whole blocks where checksums are compared."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_sidecar.engine import requests
from checkpoint_sidecar.engine.requests import (
    GAP_BYTES,
    REQUEST_BYTES,
    ByteRange,
    RangeRequest,
    RequestPiece,
    plan_requests,
)

KIB = 1024
MIB = 1024 * KIB
SIZE = 200 * MIB

spans = st.builds(
    lambda start, length: ByteRange(start, min(length, SIZE - start)),
    st.integers(0, SIZE),
    st.one_of(st.integers(0, 300 * KIB), st.integers(0, 40 * MIB)),
)
blocks = st.sampled_from([1, 4096, 256 * KIB, 4 * MIB, 24 * MIB])


@given(wanted=st.lists(spans, max_size=30), block=blocks)
@settings(deadline=None)
def test_every_wanted_byte_is_delivered_exactly_once(wanted: list[ByteRange], block: int) -> None:
    delivered: dict[int, list[ByteRange]] = {want: [] for want in range(len(wanted))}
    for request in plan_requests(wanted, block_bytes=block, size=SIZE):
        for piece in request.pieces:
            assert request.span.start <= piece.span.start < piece.span.end <= request.span.end
            delivered[piece.want].append(piece.span)
    for want, pieces in delivered.items():
        position = wanted[want].start
        for span in pieces:
            assert span.start == position
            position = span.end
        assert position == wanted[want].end if wanted[want].length else not pieces


@given(wanted=st.lists(spans, max_size=30), block=blocks)
@settings(deadline=None)
def test_requests_hold_whole_blocks_do_not_overlap_and_are_not_too_large(wanted: list[ByteRange], block: int) -> None:
    plan = plan_requests(wanted, block_bytes=block, size=SIZE)
    for request in plan:
        assert request.span.start % block == 0
        assert request.span.end % block == 0 or request.span.end == SIZE
        assert 0 < request.span.length <= max(REQUEST_BYTES, block)
    for one, other in itertools.pairwise(plan):
        assert one.span.end <= other.span.start


@given(wanted=st.lists(spans, max_size=30), block=blocks)
@settings(deadline=None)
def test_what_is_read_without_being_wanted_is_parts_of_blocks_and_small_gaps(
    wanted: list[ByteRange], block: int
) -> None:
    for request in plan_requests(wanted, block_bytes=block, size=SIZE):
        reach = request.pieces[0].span.start
        assert reach - request.span.start < block
        for piece in request.pieces:
            unwanted_blocks = piece.span.start // block - -(-reach // block)
            assert unwanted_blocks * block <= GAP_BYTES
            reach = max(reach, piece.span.end)
        assert request.span.end - reach < block


@given(wanted=st.lists(spans, max_size=30), block=blocks)
@settings(deadline=None)
def test_ranges_that_nearly_touch_share_a_request(wanted: list[ByteRange], block: int) -> None:
    for one, other in itertools.pairwise(plan_requests(wanted, block_bytes=block, size=SIZE)):
        apart = other.span.start - one.span.end > GAP_BYTES
        full = other.span.end - one.span.start > max(REQUEST_BYTES // block, 1) * block - GAP_BYTES - block
        assert apart or full


def test_a_file_that_is_wanted_whole_is_read_in_the_largest_requests_and_nothing_twice() -> None:
    plan = plan_requests([ByteRange(0, SIZE)], block_bytes=256 * KIB, size=SIZE)
    assert [request.span.length for request in plan] == [16 * MIB] * 12 + [8 * MIB]


def test_many_small_neighbours_are_one_request() -> None:
    wanted = [ByteRange(start, 1000) for start in range(0, 1_000_000, 2000)]
    (request,) = plan_requests(wanted)
    assert request.span == ByteRange(0, 999_000)
    assert len(request.pieces) == 500


def test_the_same_bytes_wanted_twice_are_read_once() -> None:
    (request,) = plan_requests([ByteRange(10, 100), ByteRange(50, 100), ByteRange(10, 100)])
    assert request.span == ByteRange(10, 140)
    assert Counter(piece.want for piece in request.pieces) == {0: 1, 1: 1, 2: 1}


def test_twenty_thousand_wants_in_any_order_are_planned_in_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clipped = 0
    original = requests._clipped

    def counting(span: ByteRange, start: int, end: int) -> ByteRange:
        nonlocal clipped
        clipped += 1
        return original(span, start, end)

    monkeypatch.setattr(requests, "_clipped", counting)
    wanted = [ByteRange(index * 3000 % 60_000_000, 2000) for index in range(20_000)]
    plan = plan_requests(wanted, block_bytes=256 * KIB, size=60_000_000)
    assert len(plan) == 4
    assert clipped < 20_100


def test_nothing_wanted_is_nothing_read() -> None:
    assert plan_requests([]) == []
    assert plan_requests([ByteRange(5, 0)], block_bytes=4096, size=10) == []


def test_the_last_block_ends_with_the_file() -> None:
    (request,) = plan_requests([ByteRange(4096, 1)], block_bytes=4096, size=5000)
    assert request == RangeRequest(ByteRange(4096, 904), (RequestPiece(0, ByteRange(4096, 1)),))
