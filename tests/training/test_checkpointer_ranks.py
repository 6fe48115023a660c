"""``Checkpointer`` on several real ranks: they save, restore, stop and fail together; no operator anywhere."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from checkpoint_sidecar.core.log import AttemptStarted, RestoreFinished, SnapshotCommitted
from training.checkpointer_ranks import (
    Job,
    Outcome,
    Ranks,
    Sharding,
    dawdle,
    dawdle_in_upload,
    die,
    panic_on_reading,
    refuse,
    run,
    same,
    terminate,
)
from training.checkpointer_runs import RunStorage

pytestmark = pytest.mark.distributed


def codes(outcomes: list[Outcome]) -> list[int | None]:
    return [outcome.code for outcome in outcomes]


@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    storage: RunStorage, tmp_path: Path, sharding: Sharding
) -> None:
    job = partial(Job, sharding=sharding)
    undisturbed = run(job(f"{storage.url}-undisturbed", total=6), tmp_path)
    run(job(storage.url, total=3), tmp_path)
    resumed = run(job(storage.url, total=6), tmp_path)
    assert [outcome.steps for outcome in resumed] == [(4, 5, 6)] * 2
    assert all(map(same, undisturbed, resumed))


def test_a_snapshot_fits_more_and_fewer_ranks(storage: RunStorage, tmp_path: Path) -> None:
    for world_size, total in ((2, 1), (1, 2), (2, 3)):
        outcomes = run(Job(storage.url, total, sharding="fsdp2", world_size=world_size), tmp_path)
        assert [outcome.steps for outcome in outcomes] == [(total,)] * world_size
    assert [commit.world_size for commit in storage.bodies(SnapshotCommitted)] == [2, 1, 2]


def test_sigterm_at_one_rank_saves_and_stops_all_of_them(storage: RunStorage, tmp_path: Path) -> None:
    evicted = run(Job(storage.url, 9, every_steps=None, on_step=partial(terminate, to=1, at=3)), tmp_path)
    assert codes(evicted) == [143, 143]
    assert len({outcome.steps[-1] for outcome in evicted}) == 1
    stopped = evicted[0].steps[-1]
    assert stopped in (3, 4)
    (commit,) = storage.bodies(SnapshotCommitted)
    assert (commit.step, commit.trigger) == (stopped, "Termination")
    replaced = run(Job(storage.url, 9, every_steps=None), tmp_path)
    assert [outcome.steps for outcome in replaced] == [tuple(range(stopped + 1, 10))] * 2


@pytest.mark.parametrize("who", [0, 1])
def test_a_native_client_that_panics_on_one_rank_of_a_restore_is_an_error_on_all(
    storage: RunStorage, tmp_path: Path, who: int
) -> None:
    run(Job(storage.url, 2), tmp_path)
    outcomes = run(Job(storage.url, 3, wrap_store=partial(panic_on_reading, who=who)), tmp_path)
    assert codes(outcomes) == [1, 1], outcomes
    assert all("Panic: called Option::unwrap()" in str(outcome.error) for outcome in outcomes)
    assert [outcome.steps for outcome in run(Job(storage.url, 3), tmp_path)] == [(3,)] * 2


def test_a_save_that_cannot_commit_in_time_is_called_off_by_all_ranks_and_leaves_nothing(
    storage: RunStorage, tmp_path: Path
) -> None:
    job = Job(storage.url, 9, every_steps=None, grace_seconds=3.5, on_step=partial(terminate, to=1, at=3))
    outcomes = run(replace(job, on_upload=partial(dawdle_in_upload, who=0)), tmp_path)
    assert codes(outcomes) == [143, 143]
    assert storage.bodies(SnapshotCommitted) == []
    assert not list(storage.store.list("step-"))


@pytest.mark.parametrize(
    ("who", "where"),
    [
        pytest.param(1, "step-4/", id="before-the-data-of-one-rank"),
        pytest.param(0, "manifest.json", id="before-the-manifest"),
    ],
)
def test_a_rank_killed_in_a_save_leaves_the_snapshot_before(
    storage: RunStorage, tmp_path: Path, who: int, where: str
) -> None:
    run(Job(storage.url, 2), tmp_path)
    killed = run(Job(storage.url, 9, on_upload=partial(die, who=who, where=where)), tmp_path)
    assert killed[who].code == -signal.SIGKILL
    assert killed[1 - who].code not in (0, None)
    assert list(storage.run.snapshots) == [storage.snapshot(2).id]
    # No rank marked its end; another test shows that a start then waits a while.
    successor = run(Job(storage.url, 3, options={"takeover_seconds": 0.0}), tmp_path)
    assert [outcome.steps for outcome in successor] == [(3,), (3,)]


def test_the_failed_upload_of_one_rank_is_raised_on_all(storage: RunStorage, tmp_path: Path) -> None:
    outcomes = run(Job(storage.url, 5, on_upload=partial(refuse, who=1)), tmp_path)
    assert [outcome.error[0] for outcome in outcomes if outcome.error] == ["StoreError"] * 2
    assert not storage.run.snapshots
    assert not list(storage.store.list("step-"))


def test_damage_seen_by_one_rank_moves_all_to_the_snapshot_before(storage: RunStorage, tmp_path: Path) -> None:
    run(Job(storage.url, 4, sharding="fsdp2"), tmp_path)
    storage.damage(4, "__1_0.distcp")
    outcomes = run(Job(storage.url, 5, sharding="fsdp2"), tmp_path)
    assert [outcome.steps for outcome in outcomes] == [(3, 4, 5)] * 2
    failed, restored = storage.bodies(RestoreFinished)
    whole = storage.snapshot(2).commit.bytes
    assert (restored.verified, restored.compared_bytes) == ("Checksums", whole), (
        "both ranks together compared all of it"
    )
    assert (failed.restored, failed.evidence) == (False, "ChecksumMismatch")
    assert (restored.restored, restored.snapshot) == (True, storage.snapshot(2).id)


def test_all_ranks_of_a_fenced_attempt_stop(storage: RunStorage, tmp_path: Path) -> None:
    first = Ranks(Job(storage.url, 200, every_steps=None, on_step=dawdle), tmp_path)
    deadline = time.monotonic() + 30
    while not storage.bodies(AttemptStarted) and time.monotonic() < deadline:
        time.sleep(0.1)
    run(Job(storage.url, 1, options={"takeover_seconds": 0.0}), tmp_path)
    assert [outcome.error[0] for outcome in first.wait() if outcome.error] == ["FencedError"] * 2
    assert [commit.attempt for commit in storage.bodies(SnapshotCommitted)] == [2]
