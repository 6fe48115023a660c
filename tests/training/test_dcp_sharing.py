"""Which rank reads what several ranks need; and real ranks doing so. The checks are in ``sharing_ranks``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from checkpoint_sidecar.training.dcp.read_once import plan_shares
from training.ranks import run_ranks

SCRIPT = Path(__file__).with_name("sharing_ranks.py")
CHECKS = re.findall(r"^@check\ndef (\w+)", SCRIPT.read_text(), flags=re.MULTILINE)


def item(number: int, kind: LoadItemType = LoadItemType.TENSOR) -> ReadItem:
    index = MetadataIndex(f"x{number}", torch.Size([0]))
    return ReadItem(kind, index, torch.Size([0]), index, torch.Size([0]), torch.Size([number]))


def size_of(read: ReadItem) -> int:
    return read.lengths[0]


plans = st.lists(st.lists(st.integers(1, 40), max_size=12, unique=True), min_size=1, max_size=5)


@given(plans)
def test_of_the_ranks_that_need_an_item_one_reads_it_and_gives_it_to_each_of_the_others(needs: list[list[int]]) -> None:
    shares = plan_shares([[item(number) for number in numbers] for numbers in needs], size_of, minimum=10)
    for number in {number for numbers in needs for number in numbers}:
        holders = {rank for rank, numbers in enumerate(needs) if number in numbers}
        received = {rank for rank in holders if shares and item(number) in shares[rank].received}
        assert len(holders - received) == (1 if number >= 10 else len(holders))
        sent = {
            transfer.peer
            for rank in holders - received
            for transfer in (shares[rank].transfers if shares else ())
            if transfer.sending and transfer.item == item(number)
        }
        assert sent == received


@given(plans)
def test_both_sides_of_a_transfer_know_it_by_the_same_number_in_the_same_order(needs: list[list[int]]) -> None:
    shares = plan_shares([[item(number) for number in numbers] for numbers in needs], size_of, minimum=1) or []
    sides: dict[int, list[tuple[int, int, bool]]] = {}
    for rank, share in enumerate(shares):
        assert [t.number for t in share.transfers] == sorted(t.number for t in share.transfers)
        for transfer in share.transfers:
            sides.setdefault(transfer.number, []).append((rank, transfer.peer, transfer.sending))
    for both in sides.values():
        assert len(both) == 2
        (one, to, sending), (other, back, receiving) = both
        assert (one, to) == (back, other)
        assert sending != receiving


def test_reading_is_spread_by_bytes_and_counts_what_each_reads_for_itself() -> None:
    numbers = [60, 50, 40, 30, 20]
    own, common = item(100), [item(number) for number in numbers]
    shares = plan_shares([[own, *common], common, common], size_of, minimum=10)
    assert shares is not None
    read = [sum(size_of(each) for each in common if each not in share.received) for share in shares]
    assert sum(read) == sum(numbers)
    assert read[0] == 0, "it has enough of its own"
    assert max(read) - min(read[1:]) <= 20


def test_nothing_is_shared_when_no_two_ranks_need_the_same() -> None:
    assert plan_shares([[item(20)], [item(30)], []], size_of, minimum=10) is None


def test_objects_are_read_by_every_rank() -> None:
    assert plan_shares([[item(20, LoadItemType.BYTE_IO)]] * 2, size_of, minimum=10) is None


def test_a_second_destination_of_the_same_bytes_is_its_ranks_own_affair() -> None:
    again = ReadItem(LoadItemType.TENSOR, MetadataIndex("y"), torch.Size([0]), *list(vars(item(20)).values())[3:])
    shares = plan_shares([[item(20), again], [item(20)]], size_of, minimum=10)
    assert shares is not None
    assert all(again not in share.received for share in shares)
    assert len(shares[1].received) == 1


@pytest.fixture(scope="module", params=[2, 4], ids=lambda ranks: f"{ranks} ranks")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Error text by check, for each rank."""
    return run_ranks(SCRIPT, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.distributed
@pytest.mark.parametrize("check", CHECKS)
def test_ranks(check: str, results: list[dict[str, str]]) -> None:
    for rank, result in enumerate(results):
        assert not result[check], f"rank {rank}: {result[check]}"
