"""Which rank reads what several ranks need; and real ranks doing so. The checks are in ``sharing_ranks``."""

from __future__ import annotations

import math
import pickle
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from checkpoint_sidecar.training.dcp import read_once
from checkpoint_sidecar.training.dcp.load_planner import StrictLoadPlanner
from checkpoint_sidecar.training.dcp.read_once import pass_on
from checkpoint_sidecar.training.dcp.shared_reads import (
    MOST_DIRECT,
    NeededPart,
    SharedPart,
    packed_needs,
    plan_shares,
    shared_parts,
)
from doubles.counting import CountingStore
from doubles.memory import MemoryStore
from doubles.targets import save
from training.ranks import playing, run_ranks

SCRIPT = Path(__file__).with_name("sharing_ranks.py")
CHECKS = re.findall(r"^@check\ndef (\w+)", SCRIPT.read_text(), flags=re.MULTILINE)
PATIENCE = 30.0
"""Seconds until a rank counts as waiting in vain."""


def part(number: int, *, size: int = 0, lengths: Sequence[int] = (1, 2)) -> NeededPart:
    return NeededPart(number, size or number, [0] * len(lengths), lengths)


def shares(needs: Sequence[Sequence[int]]) -> list[tuple[SharedPart, ...]]:
    """Each rank's transfers, where it needs parts with these numbers."""
    packed = plan_shares([packed_needs(map(part, numbers)) for numbers in needs])
    return [shared_parts(each) for each in packed] if packed else [()] * len(needs)


def by_number(needs: Sequence[Sequence[int]]) -> dict[int, dict[int, SharedPart]]:
    """Transfers by the number of the part and by rank."""
    found: defaultdict[int, dict[int, SharedPart]] = defaultdict(dict)
    for rank, own in enumerate(shares(needs)):
        for each in own:
            found[needs[rank][each.position]][rank] = each
    return found


few_ranks = st.lists(st.lists(st.integers(1, 40), max_size=12, unique=True), min_size=1, max_size=5)
replicas = st.builds(
    lambda alike, others: alike * 4 + others,
    st.lists(st.lists(st.integers(1, 9), max_size=6, unique=True), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(1, 9), max_size=6, unique=True), max_size=2),
)
plans = few_ranks | replicas


@given(plans)
@example([[1, 2]] * 20 + [[2, 1], [2]])
def test_of_the_ranks_that_need_a_part_one_reads_it_and_each_of_the_others_receives_it(needs: list[list[int]]) -> None:
    found = by_number(needs)
    for number in {number for numbers in needs for number in numbers}:
        holders = {rank for rank, numbers in enumerate(needs) if number in numbers}
        transfers = found.get(number, {})
        if len(holders) == 1:
            assert not transfers, "nothing to do with others"
            continue
        assert transfers.keys() == holders
        (reader,) = [rank for rank, each in transfers.items() if each.source is None]
        arrived = [reader]
        for rank in arrived:
            arrived += transfers[rank].destinations
        assert Counter(arrived) == Counter(holders)


@given(plans)
def test_both_sides_of_a_transfer_know_it_by_the_same_number_in_the_same_order(needs: list[list[int]]) -> None:
    sent, received = set(), set()
    for rank, own in enumerate(shares(needs)):
        assert [each.number for each in own] == sorted({each.number for each in own})
        sent |= {(each.number, rank, peer) for each in own for peer in each.destinations}
        received |= {(each.number, each.source, rank) for each in own if each.source is not None}
    assert sent == received


@pytest.mark.parametrize("ranks", [2, MOST_DIRECT, MOST_DIRECT + 1, 64, 100])
def test_what_few_ranks_need_comes_from_its_reader_and_what_many_need_is_passed_on(ranks: int) -> None:
    parts = {rank: own[0] for rank, own in enumerate(shares([[5]] * ranks))}
    most = max(len(each.destinations) for each in parts.values())
    hops = []
    for rank in parts:
        source, count = parts[rank].source, 0
        while source is not None:
            source, count = parts[source].source, count + 1
        hops.append(count)
    if ranks <= MOST_DIRECT:
        assert (most, max(hops)) == (ranks - 1, 1)
    else:
        assert most == math.ceil(math.log2(ranks))
        assert max(hops) <= math.log2(ranks)


def test_reading_is_spread_by_bytes_and_counts_what_each_reads_for_itself() -> None:
    common = [60, 50, 40, 30, 20]
    found = shares([[100, *common], common, common])
    read = [
        sum(needs[each.position] for each in own if each.source is None)
        for own, needs in zip(found, ([100, *common], common, common), strict=True)
    ]
    assert sum(read) == sum(common)
    assert read[0] == 0, "it has enough of its own"
    assert max(read) - min(read[1:]) <= 20


def test_nothing_is_shared_when_no_two_ranks_need_the_same() -> None:
    assert plan_shares([packed_needs([part(20)]), packed_needs([part(30)]), packed_needs([])]) is None


def test_parts_of_one_chunk_differ_by_their_place() -> None:
    upper, lower = NeededPart(1, 8, (0, 0), (2, 4)), NeededPart(1, 8, (2, 0), (2, 4))
    assert plan_shares([packed_needs([upper]), packed_needs([lower])]) is None
    assert plan_shares([packed_needs([upper, lower]), packed_needs([lower])]) is not None


def test_a_second_destination_of_the_same_bytes_is_its_ranks_own_affair() -> None:
    packed = plan_shares([packed_needs([part(20), part(20)]), packed_needs([part(20)])])
    assert packed is not None
    assert [[each.position for each in shared_parts(own)] for own in packed] == [[0], [0]]


def test_tensors_of_different_dimensions_are_planned_together() -> None:
    scalar, cube = part(1, lengths=()), part(2, lengths=(3, 4, 5))
    packed = plan_shares([packed_needs([scalar]), packed_needs([scalar, cube]), packed_needs([cube])])
    assert packed is not None
    assert [len(shared_parts(own)) for own in packed] == [1, 2, 1]


@dataclass
class Letter:
    """A message between two threads: its sender is done when it was taken, as in the strictest of networks."""

    data: torch.Tensor | None = None
    sent: threading.Event = field(default_factory=threading.Event)
    taken: threading.Event = field(default_factory=threading.Event)


class Network:
    """Stands in for ``torch.distributed``, with threads as ranks. A thread's group is its rank."""

    ReduceOp = dist.ReduceOp

    def __init__(self, ranks: int) -> None:
        self._all = threading.Barrier(ranks)
        self._reduced: list[int] = []
        self._letters: defaultdict[tuple[int, int, int], Letter] = defaultdict(Letter)
        self._lock = threading.Lock()

    def all_reduce(self, data: torch.Tensor, *, op: Any, group: int) -> None:
        del op, group
        self._reduced.append(int(data))
        self._all.wait(PATIENCE)
        data.fill_(max(self._reduced))

    def isend(self, data: torch.Tensor, to: int, *, group: int, tag: int) -> Any:
        letter = self._letter(group, to, tag)
        letter.data = data
        letter.sent.set()
        return SimpleNamespace(wait=lambda: self._happened(letter.taken))

    def irecv(self, into: torch.Tensor, source: int, *, group: int, tag: int) -> Any:
        letter = self._letter(source, group, tag)

        def wait() -> None:
            self._happened(letter.sent)
            assert letter.data is not None
            into.copy_(letter.data)
            letter.taken.set()

        return SimpleNamespace(wait=wait)

    def get_global_rank(self, group: int, rank: int) -> int:
        del group
        return rank

    def _letter(self, source: int, to: int, tag: int) -> Letter:
        with self._lock:
            return self._letters[source, to, tag]

    def _happened(self, event: threading.Event) -> None:
        assert event.wait(PATIENCE), "a rank waits in vain"


Blank = Callable[[int, int], torch.Tensor]


def passed_on(monkeypatch: pytest.MonkeyPatch, needs: Sequence[Sequence[int]], blank: Blank) -> list[Any]:
    """Pass parts of eight numbers on between threads. Returns each rank's tensors, or its error."""
    monkeypatch.setattr(read_once, "dist", Network(len(needs)))
    monkeypatch.setattr(read_once, "_WINDOW_BYTES", 100)  # three parts

    def run(rank: int, parts: Sequence[SharedPart]) -> Any:
        read = {each.position for each in parts if each.source is None}
        targets = [
            content(number) if position in read else blank(rank, number) for position, number in enumerate(needs[rank])
        ]
        try:
            pass_on(parts, targets, rank)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return error
        return targets

    with ThreadPoolExecutor(len(needs)) as pool:
        return list(pool.map(run, range(len(needs)), shares(needs)))


def content(number: int) -> torch.Tensor:
    return torch.arange(8, dtype=torch.float32).reshape(2, 4) + number


def test_sixty_four_ranks_in_eight_replicas_pass_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [[*range(100 * (rank % 8), 100 * (rank % 8) + 10), 5000 + rank // 32, 9000] for rank in range(64)]
    found = passed_on(monkeypatch, needs, lambda rank, _: torch.zeros(4, 2).t() if rank % 2 else torch.zeros(2, 4))
    for numbers, tensors in zip(needs, found, strict=True):
        assert all(torch.equal(tensor, content(number)) for number, tensor in zip(numbers, tensors, strict=True))


def test_a_rank_that_cannot_take_a_part_passes_it_on_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [[number + 1 for number in range(20)]] * 16
    found = passed_on(
        monkeypatch, needs, lambda rank, _: torch.zeros(1, 4).expand(2, 4) if rank == 1 else torch.zeros(2, 4)
    )
    assert isinstance(found[1], RuntimeError)
    for tensors in found[:1] + found[2:]:
        assert all(torch.equal(tensor, content(number)) for number, tensor in zip(needs[0], tensors, strict=True))


def test_eight_replicas_of_eight_shards_read_each_byte_once_and_get_it_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks, store = 64, CountingStore(MemoryStore())
    full = {"sharded": torch.randn(2048, 1024), "whole": torch.randn(512, 512), "small": torch.randn(9)}
    saved = save(store, full)
    readers, planners, states, plans = [], [], [], []
    for rank in range(ranks):
        with playing(rank, ranks):
            mesh = init_device_mesh("cpu", (8, 8))
            shard = DTensor.from_local(torch.zeros(256, 1024), mesh, [Replicate(), Shard(0)], run_check=False)
            state: dict[str, Any] = {"sharded": shard, "whole": torch.zeros(512, 512), "small": torch.zeros(9)}
            # A block that holds the end of one part and the beginning of another would be read for both.
            reader, planner = saved.reader(sharing=rank, verify="Sizes"), StrictLoadPlanner()
            metadata = reader.read_metadata()
            planner.set_up_planner(state, metadata, is_coordinator=rank == 0)
            reader.set_up_storage_reader(metadata, is_coordinator=rank == 0)
            plans.append(pickle.dumps(reader.prepare_local_plan(planner.create_local_plan())))
            readers.append(reader)
            planners.append(planner)
            states.append(state)
    given = readers[0].prepare_global_plan(list(map(pickle.loads, plans)))
    store.read.clear()
    monkeypatch.setattr(read_once, "dist", Network(ranks))
    with ThreadPoolExecutor(ranks) as pool:
        list(pool.map(lambda rank: readers[rank].read_data(given[rank], planners[rank]).wait(), range(ranks)))
    for rank, state in enumerate(states):
        assert torch.equal(state["sharded"].to_local(), full["sharded"][rank % 8 * 256 :][:256])
        assert torch.equal(state["whole"], full["whole"])
        assert torch.equal(state["small"], full["small"])
    stored = full["sharded"].nbytes + full["whole"].nbytes
    assert stored <= store.read[saved.data_key] <= stored + ranks * 10_000


@pytest.fixture(scope="module", params=[2, 4, 10], ids=lambda ranks: f"{ranks} ranks")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Error text by check, for each rank."""
    return run_ranks(SCRIPT, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.distributed
@pytest.mark.parametrize("check", CHECKS)
def test_ranks(check: str, results: list[dict[str, str]]) -> None:
    for rank, result in enumerate(results):
        assert not result[check], f"rank {rank}: {result[check]}"
