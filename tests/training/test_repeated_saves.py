"""A save like the one before it is not planned again, and is what it would be without a save before it."""

from __future__ import annotations

import gc
import pickle
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from checkpoint_sidecar import PerRank, RandomState
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.training.dcp import global_plan, receipts
from checkpoint_sidecar.training.dcp.archives import archived, lay_out
from checkpoint_sidecar.training.dcp.array_plan import ArrayPlan
from checkpoint_sidecar.training.dcp.columns import unpack_texts
from checkpoint_sidecar.training.dcp.index import encode
from checkpoint_sidecar.training.dcp.inventory import Inventory, PlannedMetadata
from checkpoint_sidecar.training.dcp.item_table import ItemTable
from checkpoint_sidecar.training.dcp.metadata_pickle import metadata_pickles
from checkpoint_sidecar.training.dcp.receipts import Results, stored_inventory
from checkpoint_sidecar.training.dcp.remembered import Recent, digest_of, once_for_each
from checkpoint_sidecar.training.dcp.replicas import Holding, Kind
from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner, History
from checkpoint_sidecar.training.state.application import TrainingState
from training.states import Held
from training.test_global_plan import all_plans, by_items, changed, item, outcome, sent

BF16 = TensorProperties(torch.bfloat16)


@pytest.fixture(autouse=True)
def decided(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of ranks of each global plan that is decided, from a memory that is empty."""
    numbers: list[int] = []
    decide = global_plan._Decision.of

    def counted(plans: list[ArrayPlan], options: dict[str, Any]) -> Any:
        numbers.append(len(plans))
        return decide(plans, options)

    monkeypatch.setattr(global_plan, "_decisions", Recent[Any](2))
    monkeypatch.setattr(global_plan._Decision, "of", counted)
    return numbers


def plan(rank: int, *, digest: int = 5, seed: int = 0, dtype: torch.dtype = torch.bfloat16, rows: int = 4) -> ArrayPlan:
    """A rank's plan: its shard of a tensor, and a tensor that all ranks hold."""
    held = [
        item("sharded", TensorProperties(dtype), (2 * rows, 8), (rank * rows, 0), (rows, 8), Kind.SHARD, None),
        item("whole", BF16, (4, 4), (0, 0), (4, 4), Kind.TENSOR, digest),
    ]
    names = {name: ("model", name.removeprefix("model.")) for name in ("model.sharded", "model.whole")}
    return ArrayPlan.of(SavePlan([each[0] for each in held], planner_data=names), tuple(h for _, h in held), seed)


def planned(plans: list[ArrayPlan]) -> tuple[list[SavePlan], Metadata]:
    return BalancedSavePlanner().create_global_plan(sent(plans))


def make_plan(**options: Any) -> tuple[list[SavePlan], Metadata]:
    return planned([plan(rank, **options) for rank in range(2)])


@settings(max_examples=150)
@given(all_plans(), st.data())
def test_what_is_planned_does_not_depend_on_the_saves_before(plans: list[ArrayPlan], data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, len(plans) - 1))
    other = list(plans)
    if plans[rank].items:
        number = data.draw(st.integers(0, len(plans[rank].items) - 1))
        held: list[Any] = [*zip(plans[rank].items, plans[rank].holdings, strict=True)]
        held[number] = data.draw(changes(held[number]))
        made = SavePlan([each for each, _ in held], planner_data=plans[rank].planner_data)
        other[rank] = ArrayPlan.of(made, tuple(each for _, each in held), data.draw(st.sampled_from([3, 4])))
    assert [outcome(partial(planned, each)) for each in (plans, other, plans)] == [
        by_items(each) for each in (plans, other, plans)
    ]


@st.composite
def changes(draw: st.DrawFn, held: tuple[WriteItem, Holding]) -> tuple[WriteItem, Holding]:
    found = changed(draw, [held])[0]
    assert found is not None
    return found


@pytest.mark.parametrize("later", [{"digest": 6, "seed": 1}, {"digest": 7}, {}])
def test_other_values_are_no_reason_to_plan_again(decided: list[int], later: dict[str, Any]) -> None:
    first, second = make_plan(), make_plan(**later)
    assert decided == [2]
    assert [each.items for each in first[0]] == [each.items for each in second[0]]
    assert first[1].state_dict_metadata == second[1].state_dict_metadata


def test_values_that_differ_between_ranks_are_refused_in_a_later_save_too() -> None:
    make_plan()
    with pytest.raises(ConfigurationError, match="whole"):
        planned([plan(0), plan(1, digest=6)])
    make_plan()


def test_digests_of_different_saves_are_not_compared() -> None:
    make_plan()
    assert global_plan.global_plan(sent([plan(0), plan(1, digest=6, seed=1)])) is not None


def test_a_plan_that_does_not_travel_is_neither_packed_nor_kept(decided: list[int]) -> None:
    for _ in range(2):
        held = plan(0)
        alone = ArrayPlan.of(SavePlan(held.items[1:], planner_data=held.planner_data), held.holdings[1:])
        (given,), metadata = BalancedSavePlanner().create_global_plan([alone])
        assert [each.index.fqn for each in given.items] == ["whole"]
        assert given.planner_data == held.planner_data
        assert isinstance(metadata, PlannedMetadata)
        assert "packed" not in vars(alone)
    assert decided == [1, 1]


@pytest.mark.parametrize("other", [{"dtype": torch.float16}, {"rows": 6}])
def test_another_dtype_or_shape_is_planned_anew(decided: list[int], other: dict[str, Any]) -> None:
    make_plan()
    _, metadata = make_plan(**other)
    assert decided == [2, 2]
    described: Any = metadata.state_dict_metadata["sharded"]
    assert described.properties.dtype == other.get("dtype", torch.bfloat16)
    assert described.size[0] == 2 * other.get("rows", 4)


def test_two_states_that_are_saved_in_turn_do_not_displace_each_other(decided: list[int]) -> None:
    for _ in range(3):
        make_plan()
        make_plan(rows=6)
    assert decided == [2, 2]


class Trained:
    """What ``Checkpointer`` saves on one rank: the usual objects, of which each step changes the values."""

    def __init__(self, rank: int) -> None:
        torch.manual_seed(0)
        self.rank = rank
        self.history = History()
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=1000)
        self.loader = Held({})
        self.progress: dict[str, Any] = {"tokens": 0, "loss": 0.0}
        self.state = {
            "model": self.model,
            "optim": self.optimizer,
            "schedule": self.schedule,
            "loader": PerRank(self.loader),
            "random": RandomState(),
            "progress": self.progress,
        }
        self.step()

    def step(self) -> None:
        self.model(torch.randn(4, 8)).square().mean().backward()
        self.optimizer.step()
        self.schedule.step()
        seed = torch.randint(1 << 32, ()).item()
        random.seed(seed)
        np.random.seed(seed)
        self.loader.state = {"position": torch.randint(1 << 40, ()).item(), "order": torch.randperm(500).tolist()}
        self.progress["tokens"] += 123_456_789
        self.progress["loss"] = torch.rand(()).item()

    def planner(self) -> BalancedSavePlanner:
        planner = BalancedSavePlanner(history=self.history)
        captured = TrainingState(self.state, rank=self.rank).capture()
        planner.set_up_planner(captured, is_coordinator=self.rank == 0)
        return planner


def saved(ranks: list[Trained]) -> tuple[Inventory, int]:
    """Play a save. Returns what rank 0 writes into ``.metadata``, and how often it has to look at names of ranks."""
    planners = [each.planner() for each in ranks]
    with mock.patch.object(ItemTable, "unpacked", wraps=ItemTable.unpacked) as unpacked:
        plans, metadata = planners[0].create_global_plan(sent([each.create_local_plan() for each in planners]))
        looks = unpacked.call_count
    done = []
    for rank, (planner, assigned) in enumerate(zip(planners, sent(plans), strict=True)):
        items = planner.finish_plan(assigned).items
        archives = archived((each, planner.resolve_data(each)) for each in items)
        done.append(Results(lay_out(archives, rank=rank).results))
    with mock.patch.object(receipts, "unpack_texts", wraps=unpack_texts) as unpacked:
        inventory = stored_inventory(metadata, [pickle.loads(pickle.dumps(each)) for each in done])
    assert inventory is not None
    return inventory, looks + unpacked.call_count


def test_a_training_is_planned_once_and_described_once(decided: list[int]) -> None:
    ranks = [Trained(0), Trained(1)]
    first, looked = saved(ranks)
    assert looked > 0
    for _ in range(10):
        for rank in ranks:
            rank.step()
        later, looked = saved(ranks)
        assert later is first, "everything lies where it lay, and is described as it was"
        assert encode(later) is encode(first)
        assert looked == 0, "the names of a rank were unpacked, which takes long on many ranks"
    assert decided == [2]
    assert len([name for name in first.names if "__form__" in name]) == 2


def add_group(trained: Trained) -> None:
    more = torch.nn.Linear(2, 2)
    trained.state["more"] = more
    trained.optimizer.add_param_group({"params": list(more.parameters())})


def freeze(trained: Trained) -> None:
    trained.model[0].requires_grad_(False)


def add_option(trained: Trained) -> None:
    trained.optimizer.param_groups[0]["mode"] = "other"


def change_dtype(trained: Trained) -> None:
    state = trained.optimizer.state[trained.model.get_parameter("0.weight")]
    state["exp_avg"] = state["exp_avg"].to(torch.bfloat16)


def add_object(trained: Trained) -> None:
    trained.state["seen"] = 1


CHANGES = [add_group, freeze, add_option, change_dtype, add_object]


@pytest.mark.parametrize("change", CHANGES)
def test_another_structure_is_planned_anew(decided: list[int], change: Callable[[Trained], None]) -> None:
    ranks = [Trained(0), Trained(1)]
    first, _ = saved(ranks)
    for rank in ranks:
        change(rank)
    other, _ = saved(ranks)
    assert decided == [2, 2]
    assert (other.names, other.kinds) != (first.names, first.kinds)


@pytest.mark.parametrize("change", [freeze, add_option, add_object])
def test_another_structure_of_one_rank_is_planned_anew(decided: list[int], change: Callable[[Trained], None]) -> None:
    ranks = [Trained(0), Trained(1)]
    first, _ = saved(ranks)
    change(ranks[1])
    other, _ = saved(ranks)
    assert decided == [2, 2]
    assert set(other.names) > set(first.names), "what both ranks held is still there, beside what one has now"


def test_a_dtype_that_one_rank_changes_is_refused_in_a_later_save_too() -> None:
    ranks = [Trained(0), Trained(1)]
    saved(ranks)
    change_dtype(ranks[1])
    with pytest.raises(ConfigurationError, match=r"optim\.state\.0\.weight\.exp_avg"):
        saved(ranks)


def results(lengths: tuple[int, int] = (64, 64)) -> list[Any]:
    """What two ranks have stored, as rank 0 receives it."""
    found = []
    for rank, length in enumerate(lengths):
        name = f"__{rank}_0.distcp"
        rows = [WriteResult(MetadataIndex("sharded", (4 * rank, 0), rank), length, _StorageInfo(name, 0, length))]
        if rank == 0:
            rows.append(WriteResult(MetadataIndex("whole", (0, 0), 0), 32, _StorageInfo(name, length, 32)))
        found.append(pickle.loads(pickle.dumps(Results(rows))))
    return found


def stored(metadata: Metadata, **options: Any) -> Inventory:
    inventory = stored_inventory(metadata, results(**options))
    assert inventory is not None
    return inventory


def test_what_describes_a_save_is_made_once_where_everything_lies_as_before() -> None:
    (_, one), (_, two) = make_plan(), make_plan()
    assert one is not two
    first, second = stored(one), stored(two)
    assert first is second
    assert encode(first) is encode(second)
    again, other = stored(two, lengths=(65, 64)), stored(one)
    assert (again is first, other is first) == (False, False), "only the last one is kept"
    assert [again.place(row).length for row in range(2)] == [65, 64]
    assert [other.place(row).length for row in range(2)] == [64, 64]


def test_metadata_of_a_later_save_is_the_same_as_without_an_earlier_one() -> None:
    _, metadata = make_plan()
    made = [
        (metadata_pickles(metadata, inventory, ["", "0001-abc", "0002-def"]), encode(inventory))
        for inventory in (stored(metadata), stored(make_plan()[1]), replace(stored(metadata)))
    ]
    assert made[0] == made[1] == made[2]
    here, first, second = (pickle.loads(each) for each in made[0][0])
    paths = [{each.relative_path for each in loaded.storage_data.values()} for loaded in (here, first, second)]
    assert paths == [{f"{prefix}__{rank}_0.distcp" for rank in range(2)} for prefix in ("", "0001-abc/", "0002-def/")]


def test_nothing_is_kept_of_a_state_that_is_no_longer_saved() -> None:
    _, metadata = make_plan()
    assert isinstance(metadata, PlannedMetadata)
    kept = [weakref.ref(metadata.contents), weakref.ref(stored(metadata))]
    del metadata
    gc.collect()
    assert all(reference() is not None for reference in kept), "or a later save could not use it"
    for rows in (6, 8):
        make_plan(rows=rows)
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def change_paths(metadata: Metadata) -> None:
    metadata.planner_data["model.whole"] = ("another", "path")


def replace_paths(metadata: Metadata) -> None:
    metadata.planner_data = {"model.whole": ("another", "path")}


def change_kinds(metadata: Metadata) -> None:
    described: Any = metadata.state_dict_metadata["whole"]
    described.properties.requires_grad = True


@pytest.mark.parametrize("change", [change_paths, replace_paths, change_kinds])
def test_metadata_that_a_program_changes_describes_one_save_only(change: Callable[[Metadata], None]) -> None:
    def described(metadata: Metadata, **elsewhere: Any) -> Any:
        (data,) = metadata_pickles(metadata, stored(metadata, **elsewhere), [""])
        loaded = pickle.loads(data)
        return loaded.planner_data, loaded.state_dict_metadata

    _, first = make_plan()
    before = described(first)
    for _ in range(2):
        _, metadata = make_plan()
        change(metadata)
        assert described(metadata) == (metadata.planner_data, metadata.state_dict_metadata) != before
    assert described(make_plan()[1]) == described(make_plan()[1], lengths=(65, 64)) == before
    change(first)
    assert described(make_plan()[1], lengths=(66, 64)) == before


def test_the_results_asked_for_last_are_kept() -> None:
    made: list[str] = []

    def ask(name: str) -> str:
        def make() -> str:
            made.append(name)
            return name

        return recent.get(digest_of([name.encode()]), make)

    recent = Recent[str](2)
    assert [ask(name) for name in "abacab"] == [*"abacab"]
    assert made == ["a", "b", "c", "b"]


def test_a_result_that_could_not_be_made_is_made_the_next_time() -> None:
    recent = Recent[str](1)
    with pytest.raises(ZeroDivisionError):
        recent.get(b"a", lambda: str(1 // 0))
    assert recent.get(b"a", lambda: "made") == "made"


@pytest.mark.parametrize(("one", "other"), [(["ab", "c"], ["a", "bc"]), (["a"], ["a", ""]), ([], [""])])
def test_the_digest_of_other_parts_is_another_one(one: list[str], other: list[str]) -> None:
    assert digest_of(map(str.encode, one)) != digest_of(map(str.encode, other))


def test_a_function_runs_once_for_each_object() -> None:
    class Given:
        pass

    calls: list[object] = []

    @once_for_each
    def count(given: Given) -> int:
        calls.append(type(given))
        return len(calls)

    one, other = Given(), Given()
    assert [count(one), count(other), count(one)] == [1, 2, 1]
