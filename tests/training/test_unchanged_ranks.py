"""``save.unchanged: Copy`` on two real ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.engine.verify import verify_snapshot
from training.adapted import BASE_BYTES
from training.checkpointer_ranks import Sharding, run, same
from training.checkpointer_runs import RunStorage
from training.unchanged_ranks import AdaptedJob, die_after_copying

pytestmark = pytest.mark.distributed


def shares(storage: RunStorage) -> list[float]:
    """Of each commit, the part that was copied."""
    return [commit.copied_bytes / commit.bytes for commit in storage.bodies(SnapshotCommitted)]


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_both_ranks_copy_their_part_also_after_a_restart(
    storage: RunStorage, tmp_path: Path, sharding: Sharding
) -> None:
    undisturbed = run(AdaptedJob(f"{storage.url}-undisturbed", 4, sharding=sharding), tmp_path)
    run(AdaptedJob(storage.url, 2, sharding=sharding), tmp_path)
    resumed = run(AdaptedJob(storage.url, 4, sharding=sharding), tmp_path)
    assert all(map(same, undisturbed, resumed))
    assert [share > 0.95 for share in shares(storage)] == [False, True, True, True]
    assert verify_snapshot(storage.store, storage.snapshot(4).commit, level="Checksums") > BASE_BYTES


def test_on_another_number_of_ranks_everything_is_sent_once(storage: RunStorage, tmp_path: Path) -> None:
    run(AdaptedJob(storage.url, 2), tmp_path)
    outcomes = run(AdaptedJob(storage.url, 4, world_size=1), tmp_path)
    assert [outcome.steps for outcome in outcomes] == [(3, 4)]
    assert [share > 0.95 for share in shares(storage)] == [False, True, False, True]


def test_a_rank_that_is_killed_while_files_are_copied_costs_that_save_only(storage: RunStorage, tmp_path: Path) -> None:
    killed = partial(die_after_copying, who=1, step=3)
    outcomes = run(AdaptedJob(storage.url, 4, wrap_store=killed, on_failure="Raise"), tmp_path)
    assert outcomes[1].code == -9
    assert [commit.step for commit in storage.bodies(SnapshotCommitted)] == [1, 2]
    assert verify_snapshot(storage.store, storage.snapshot(2).commit, level="Checksums") > BASE_BYTES
    resumed = run(AdaptedJob(storage.url, 4), tmp_path)
    assert [outcome.steps for outcome in resumed] == [(3, 4)] * 2
    assert [share > 0.95 for share in shares(storage)] == [False, True, True, True]
