"""Assignment of data that several processes hold: every row once, to a holder, and evenly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.engine.assignment import PORTION, AssignedRows, Chunk, assign

MIB = 1024 * 1024


@st.composite
def chunks(draw: st.DrawFn, ranks: int) -> Chunk:
    holders = draw(st.sets(st.integers(0, ranks - 1), min_size=1))
    return Chunk(draw(st.integers(0, 10**9)), draw(st.integers(1, 10**6)), tuple(sorted(holders)))


def loads(given: list[Chunk], assigned: list[tuple[AssignedRows, ...]], ranks: int) -> list[float]:
    result = [0.0] * ranks
    for chunk, each in zip(given, assigned, strict=True):
        for rows in each:
            result[rows.rank] += chunk.size * (rows.stop - rows.start) / chunk.rows
    return result


@given(data=st.data(), ranks=st.integers(1, 6))
def test_every_row_is_written_exactly_once_by_a_holder(data: st.DataObject, ranks: int) -> None:
    given_chunks = data.draw(st.lists(chunks(ranks), max_size=12))
    for chunk, assigned in zip(given_chunks, assign(given_chunks, ranks), strict=True):
        assert {rows.rank for rows in assigned} <= set(chunk.holders)
        assert len({rows.rank for rows in assigned}) == len(assigned)
        ends = [0, *(rows.stop for rows in assigned)]
        assert [rows.start for rows in assigned] == ends[:-1]
        assert all(rows.start < rows.stop for rows in assigned)
        assert ends[-1] == chunk.rows


@given(data=st.data(), ranks=st.integers(1, 6))
def test_a_whole_chunk_goes_to_the_holder_that_writes_least_so_far(data: st.DataObject, ranks: int) -> None:
    whole = st.builds(lambda chunk: Chunk(chunk.size, 1, chunk.holders), chunks(ranks))
    given_chunks = data.draw(st.lists(whole, max_size=12))
    written = [0.0] * ranks
    by_turns = sorted(
        zip(given_chunks, assign(given_chunks, ranks), strict=True),
        key=lambda each: (len(each[0].holders) > 1, -each[0].size),
    )
    for chunk, (rows,) in by_turns:
        assert rows.rank == min(chunk.holders, key=lambda rank: (written[rank], rank))
        written[rows.rank] += chunk.size


@st.composite
def hybrid(draw: st.DrawFn) -> tuple[list[Chunk], int]:
    """Tensors sharded over columns of a mesh and replicated over its rows, beside small ones that all ranks hold."""
    replicas, shards = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ranks = replicas * shards
    rows = draw(st.lists(st.integers(2_000, 200_000), min_size=1, max_size=40))
    sharded = [
        Chunk(count * 1_000, count, tuple(shard + shards * replica for replica in range(replicas)))
        for count in rows
        for shard in range(shards)
    ]
    everywhere = draw(st.lists(st.integers(1, 20_000), max_size=20))
    return sharded + [Chunk(size, 1, tuple(range(ranks))) for size in everywhere], ranks


@given(case=hybrid())
def test_under_hybrid_sharding_no_rank_writes_more_than_a_tenth_above_the_mean(case: tuple[list[Chunk], int]) -> None:
    given_chunks, ranks = case
    written = loads(given_chunks, assign(given_chunks, ranks, least_bytes=1_000), ranks)
    assert max(written) <= 1.1 * sum(written) / ranks
    assert math.isclose(sum(written), sum(chunk.size for chunk in given_chunks))


def test_shared_chunks_even_out_chunks_with_one_holder() -> None:
    given_chunks = [Chunk(90 * MIB, 1000, (0,)), Chunk(10 * MIB, 1000, (1,)), Chunk(100 * MIB, 1000, (0, 1))]
    written = loads(given_chunks, assign(given_chunks, 2), 2)
    assert max(written) <= (1 + PORTION) * 100 * MIB


def test_small_chunks_stay_whole() -> None:
    given_chunks = [Chunk(MIB // 2, 1000, (0, 1, 2, 3)) for _ in range(8)]
    assigned = assign(given_chunks, 4)
    assert all(len(each) == 1 for each in assigned)
    assert loads(given_chunks, assigned, 4) == [MIB] * 4


@pytest.mark.parametrize("rows", [1, 3])
def test_no_more_shares_are_made_than_there_are_rows(rows: int) -> None:
    (assigned,) = assign([Chunk(10**9, rows, tuple(range(8)))], 8)
    assert len(assigned) == rows
