"""The plan of how bytes reach their destinations: every byte once, directly where that is possible and pays."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_sidecar.engine.delivery import (
    DIRECT_BYTES,
    Assembly,
    Delivery,
    Want,
    plan_delivery,
    plan_waves,
)
from checkpoint_sidecar.engine.requests import ByteRange, RequestPiece, plan_requests

KIB = 1024
MIB = 1024 * KIB
SIZE = 200 * MIB

spans = st.builds(
    lambda start, length: ByteRange(start, min(length, SIZE - start)),
    st.integers(0, SIZE),
    st.one_of(st.integers(0, 300 * KIB), st.integers(0, 40 * MIB)),
)
blocks = st.sampled_from([1, 4096, 256 * KIB, 4 * MIB, 24 * MIB])


def received(delivery: Delivery) -> list[tuple[int, int, int | None]]:
    return [(slot.span.start, slot.span.length, slot.want) for slot in delivery.slots]


def test_a_large_piece_is_received_in_its_destination_and_the_rest_of_its_blocks_in_a_buffer() -> None:
    (request,) = plan_requests([ByteRange(100, MIB)], block_bytes=4096, size=SIZE)
    delivery = plan_delivery(request, lambda _: True)
    assert received(delivery) == [(0, 100, None), (100, MIB, 0), (100 + MIB, 3996, None)]
    assert delivery.copies == ()
    assert delivery.buffered_bytes == 4096


def test_a_small_piece_is_copied_out_of_the_buffer() -> None:
    (request,) = plan_requests([ByteRange(100, DIRECT_BYTES - 1)])
    delivery = plan_delivery(request, lambda _: True)
    assert received(delivery) == [(100, DIRECT_BYTES - 1, None)]
    assert delivery.copies == request.pieces


def test_a_piece_whose_destination_is_not_memory_is_copied_out_of_the_buffer() -> None:
    (request,) = plan_requests([ByteRange(100, MIB)])
    assert plan_delivery(request, lambda _: False).copies == request.pieces


def test_of_two_pieces_that_overlap_one_is_received_directly_and_the_other_is_copied() -> None:
    (request,) = plan_requests([ByteRange(0, MIB), ByteRange(MIB // 2, MIB)])
    delivery = plan_delivery(request, lambda _: True)
    assert received(delivery) == [(0, MIB, 0), (MIB, MIB // 2, None)]
    assert delivery.copies == (RequestPiece(1, ByteRange(MIB // 2, MIB)),)


@given(wanted=st.lists(spans, max_size=20), block=blocks, with_memory=st.sets(st.integers(0, 19)))
@settings(deadline=None)
def test_slots_cover_a_request_and_every_piece_is_received_directly_or_copied(
    wanted: list[ByteRange], block: int, with_memory: set[int]
) -> None:
    for request in plan_requests(wanted, block_bytes=block, size=SIZE):
        delivery = plan_delivery(request, with_memory.__contains__)
        position = request.span.start
        for slot in delivery.slots:
            assert slot.span.start == position
            assert slot.span.length > 0
            assert slot.want is None or slot.want in with_memory
            position = slot.span.end
        assert position == request.span.end
        assert delivery.buffered_bytes == sum(slot.span.length for slot in delivery.slots if slot.want is None)
        direct = Counter(RequestPiece(slot.want, slot.span) for slot in delivery.slots if slot.want is not None)
        assert direct + Counter(delivery.copies) == Counter(request.pieces)


def want(length: int, *, assembled: bool) -> Want:
    return Want("data", ByteRange(0, length), Assembly(lambda _: None) if assembled else memoryview(b""))


@given(
    lengths=st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=20),
    limit=st.integers(1, 3000),
)
def test_waves_serve_every_want_once_within_the_staging_memory(lengths: list[tuple[int, bool]], limit: int) -> None:
    wants = [want(length, assembled=assembled) for length, assembled in lengths]
    waves = plan_waves(wants, limit)
    served = Counter(index for wave in waves for index in (*wave.ready, *wave.assembled))
    assert served == Counter(range(len(wants)))
    for wave in waves:
        assert wave.staging_bytes <= limit or len(wave.assembled) == 1
        end = 0
        for index, offset in wave.assembled.items():
            assert isinstance(wants[index].into, Assembly)
            assert offset % 64 == 0
            assert end <= offset
            end = offset + wants[index].span.length
        assert end <= wave.staging_bytes


def test_wants_that_need_no_staging_memory_are_all_read_in_the_first_wave() -> None:
    wants = [want(100, assembled=number % 2 == 0) for number in range(6)]
    first, *others = plan_waves(wants, 100)
    assert first.ready == (1, 3, 5)
    assert [wave.ready for wave in others] == [(), ()]


def test_without_wants_there_is_one_empty_wave() -> None:
    (wave,) = plan_waves([], 100)
    assert (wave.ready, dict(wave.assembled), wave.staging_bytes) == ((), {}, 0)
