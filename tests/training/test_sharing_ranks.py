"""``save.unchanged: Share`` on two real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from checkpoint_sidecar import open_run
from checkpoint_sidecar.core.commits import shares_of
from checkpoint_sidecar.core.log import RestoreFinished
from checkpoint_sidecar.engine.verify import verify_snapshot
from training.adapted import BASE_BYTES
from training.checkpointer_ranks import Sharding, run, same
from training.checkpointer_runs import RunStorage
from training.example_ranks import run_example
from training.unchanged_ranks import AdaptedJob

pytestmark = pytest.mark.distributed


def shared(storage: RunStorage) -> list[bool]:
    """Of each commit, whether nearly all of it is in earlier snapshots."""
    commits = (snapshot.commit for snapshot in storage.run.snapshots.values())
    return [commit.shared_bytes > 0.95 * commit.bytes for commit in commits]


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_both_ranks_share_their_part_also_after_a_restart_and_a_purge(
    storage: RunStorage, tmp_path: Path, sharding: Sharding
) -> None:
    undisturbed = run(AdaptedJob(f"{storage.url}-undisturbed", 4, sharding=sharding, unchanged="Share"), tmp_path)
    run(AdaptedJob(storage.url, 2, sharding=sharding, unchanged="Share"), tmp_path)
    open_run(storage.url).remove(1)
    resumed = run(AdaptedJob(storage.url, 4, sharding=sharding, unchanged="Share"), tmp_path)
    assert all(map(same, undisturbed, resumed))
    assert shared(storage) == [False, True, True, True]
    (files,) = shares_of(storage.snapshot(4).commit)
    assert {name.split("_")[2] for name in files.by_name} == {"0", "1"}
    assert verify_snapshot(storage.store, storage.snapshot(4).commit, level="Checksums") > BASE_BYTES


def test_on_another_number_of_ranks_everything_is_sent_once(storage: RunStorage, tmp_path: Path) -> None:
    run(AdaptedJob(storage.url, 2, unchanged="Share"), tmp_path)
    outcomes = run(AdaptedJob(storage.url, 4, world_size=1, unchanged="Share"), tmp_path)
    assert [outcome.steps for outcome in outcomes] == [(3, 4)]
    assert shared(storage) == [False, True, False, True]


def test_a_damaged_file_of_another_rank_takes_all_its_users_out_at_once(storage: RunStorage, tmp_path: Path) -> None:
    job = AdaptedJob(storage.url, 3, sharding="fsdp2", unchanged="Share")
    run(job, tmp_path)
    (files,) = shares_of(storage.snapshot(3).commit)
    name = next(each for each in sorted(files.by_name) if each.startswith("__1_"))
    key = f"{storage.snapshot(1).commit.path}/{name}"
    data = bytearray(storage.store.get(key, max_bytes=1 << 30).data)
    data[len(data) // 2] ^= 1
    storage.store.put(key, data)
    run(job, tmp_path)
    tried = [each for each in storage.bodies(RestoreFinished) if not each.restored]
    assert [(each.snapshot, each.damaged_file) for each in tried] == [(storage.snapshot(3).id, key)]
    assert [storage.snapshot(step).failures for step in (1, 2, 3)] == [1, 1, 1]


def tensors_of(storage: RunStorage, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a snapshot, as torch's own reader finds them."""
    found: dict[str, torch.Tensor] = {}
    reader = dcp.FileSystemReader(f"{storage.url.removeprefix('file://')}/step-{step}")
    _load_state_dict(found, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    values = flatten_state_dict(found)[0]
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def test_the_example_stores_the_model_once_and_continues_bit_for_bit(storage: RunStorage) -> None:
    undisturbed = RunStorage(f"{storage.url}-undisturbed")
    run_example("adapters_train.py", undisturbed.url, "--steps", "6", "--every", "1")
    for steps in (3, 6):
        run_example("adapters_train.py", storage.url, "--steps", f"{steps}", "--every", "1")
    for each in (undisturbed, storage):
        assert shared(each) == [False, True, True, True, True, True]
    ends = [tensors_of(each, 6) for each in (undisturbed, storage)]
    assert any(name.endswith("exp_avg") for name in ends[0])
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    first = tensors_of(storage, 1)
    changed = {name.rpartition(".")[2] for name, value in first.items() if not torch.equal(value, ends[0][name])}
    assert changed == {"down", "up", "step", "exp_avg", "exp_avg_sq"}
