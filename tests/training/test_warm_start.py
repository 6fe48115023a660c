"""A new run begins at a snapshot of another one: once, at the same one for all, and never after its first commit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_sidecar import (
    Checkpointer,
    ConfigurationError,
    CorruptSnapshotError,
    IncompatibleSnapshotError,
    RestoreInterrupted,
    RunNotFoundError,
    SnapshotNotFoundError,
    StartFrom,
    open_run,
)
from checkpoint_sidecar.core.environment import RunEnvironment
from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.core.log import SnapshotCommitted, WarmStartChosen, WarmStartFinished
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.training import warm_starting
from localcluster.objectstore import ObjectStore
from support.s3servers import Server
from training.checkpointer_ranks import Job, Ranks, die, run, same
from training.checkpointer_runs import EVERY_STEP, RunStorage, Training, started

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def source(tmp_path: Path) -> RunStorage:
    """A run with the snapshots of steps 2 and 3."""
    storage = RunStorage(f"file://{tmp_path}/source")
    storage.train(3)
    return storage


@pytest.mark.store
@pytest.mark.distributed
def test_two_ranks_that_fork_a_run_end_like_the_run_itself(object_store: ObjectStore, tmp_path: Path) -> None:
    server = Server("seaweedfs", object_store.endpoint, object_store.access_key, object_store.secret_key)
    first, other = server.settings(), server.settings()
    job = partial(Job, sharding="fsdp2", every_steps=1)
    run(job(first, 3), tmp_path)
    forked = partial(job, other, options={"start_from": StartFrom(first, selector="latest"), "takeover_seconds": 0})
    # Killed in the first save: nothing is committed, and the other run trains on meanwhile.
    killed = Ranks(forked(6, on_upload=partial(die, who=0, where="step-4/")), tmp_path)
    killed.processes[0].join(60)
    killed.processes[1].kill()
    assert [outcome.code for outcome in killed.wait()] == [-9, -9]
    expected = run(job(first, 6), tmp_path)
    resumed = run(forked(6), tmp_path)
    assert [outcome.steps for outcome in (*expected, *resumed)] == [(4, 5, 6)] * 4
    assert all(map(same, expected, resumed))
    state = open_run(other).refresh()
    assert state.warm_start is not None
    chosen = state.warm_start.snapshot
    assert [attempt.warm_start and attempt.warm_start.snapshot for attempt in state.attempts.values()] == [chosen] * 2


@pytest.mark.distributed
def test_a_fork_may_have_another_number_of_ranks(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/source"
    run(Job(url, 2, sharding="fsdp2"), tmp_path)
    forked = run(
        Job(f"file://{tmp_path}/fork", 3, sharding="fsdp2", world_size=1, options={"start_from": url}), tmp_path
    )
    assert [outcome.steps for outcome in forked] == [(3,)]
    assert RunStorage(f"file://{tmp_path}/fork").bodies(SnapshotCommitted)[0].world_size == 1


def test_a_fork_continues_bit_for_bit(source: RunStorage, storage: RunStorage, tmp_path: Path) -> None:
    undisturbed = RunStorage(f"file://{tmp_path}/undisturbed").train(5)
    assert storage.train(5, start_from=f"{source.url}@3").fingerprint() == undisturbed.fingerprint()
    assert storage.trained == [4, 5]
    (chosen,), (outcome,) = storage.bodies(WarmStartChosen), storage.bodies(WarmStartFinished)
    assert (chosen.asked, chosen.url, chosen.step) == (f"{source.url}@3", source.url, 3)
    assert (outcome.restored, outcome.snapshot, outcome.missing) == (True, chosen.snapshot, ())
    assert storage.snapshot(4).commit.parent == ""


def test_a_start_that_dies_before_a_commit_does_not_move_on_to_a_newer_snapshot(
    source: RunStorage, storage: RunStorage
) -> None:
    asked = f"{source.url}@latest"
    with started(storage, start_from=asked):
        pass
    source.train(5)
    with Checkpointer(Training().state, storage.url, start_from=asked) as again:
        restored = again.restore()
    assert restored is not None
    assert (restored.step, restored.url) == (3, source.url)
    with Checkpointer(Training().state, storage.url) as without:
        assert (found := without.restore()) is not None
        assert (found.snapshot, found.url) == (restored.snapshot, source.url), "the log says it as well"
    with Checkpointer(Training().state, storage.url, start_from=f"{source.url}@5") as other:
        assert (found := other.restore()) is not None
        assert found.step == 5, "another request is another choice"


def test_a_run_with_a_commit_never_begins_elsewhere_again(
    source: RunStorage, storage: RunStorage, tmp_path: Path
) -> None:
    storage.train(4, start_from=source.url)
    (tmp_path / "source").rename(tmp_path / "gone")
    storage.train(5, start_from=source.url)
    storage.train(6, start_from=f"{source.url}@2")
    assert storage.trained == [4, 5, 6]
    assert len(storage.bodies(WarmStartFinished)) == 1


def test_a_run_that_was_trained_before_is_not_taken_back(source: RunStorage, storage: RunStorage) -> None:
    storage.train(4)
    with started(storage, start_from=source.url) as checkpointer:
        assert checkpointer._step == 4
    assert storage.bodies(WarmStartChosen) == []


def test_the_model_alone_leaves_everything_else_fresh(source: RunStorage, storage: RunStorage) -> None:
    training, fresh = Training(), Training()
    training.model[0].requires_grad_(False)
    with Checkpointer(training.state, storage.url, start_from=StartFrom(source.url, part="model")) as checkpointer:
        restored = checkpointer.restore()
    assert restored is not None
    assert (restored.step, restored.part) == (0, "model")
    assert restored.missing == ("optim", "random", "scheduler", "seen")
    assert restored.unused == ("optim", "random", "scheduler", "seen")
    trained = Training()
    with Checkpointer(trained.state, source.url) as original:
        original.restore()
    for mine, theirs, new in zip(*(each.model.parameters() for each in (training, trained, fresh)), strict=True):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, new)
    assert training.optimizer.state == {}
    assert training.seen == fresh.seen
    assert not training.model[0].weight.requires_grad
    storage.train(1, start_from=StartFrom(source.url, part="model"))
    assert storage.trained == [1]


def test_a_snapshot_that_is_gone_is_named_and_nothing_begins(source: RunStorage, storage: RunStorage) -> None:
    with started(storage, start_from=f"{source.url}@2"):
        pass
    owner = open_run(source.url)
    owner.configure(Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0)))
    owner.verify(3, checksums=True, record=True)
    assert owner.prune().purge
    training = Training()
    before = training.fingerprint()
    with (
        pytest.raises(SnapshotNotFoundError, match=r"start from .*: it is purged\. .* name another snapshot"),
        started(storage, training, start_from=f"{source.url}@2"),
    ):
        pass
    assert training.fingerprint() == before
    failed = storage.bodies(WarmStartFinished)[-1]
    assert (failed.restored, "it is purged" in failed.message) == (False, True)
    assert storage.bodies(SnapshotCommitted) == []


def test_damage_is_an_error_and_no_other_snapshot_takes_its_place(source: RunStorage, storage: RunStorage) -> None:
    source.damage(3)
    with pytest.raises(CorruptSnapshotError), started(storage, start_from=source.url):
        pass
    (failed,) = storage.bodies(WarmStartFinished)
    assert (failed.restored, failed.evidence) == (False, "ChecksumMismatch")


def test_a_failing_store_interrupts_the_start(
    source: RunStorage, storage: RunStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StoreError("read", "a key", "the store is away")

    monkeypatch.setattr(warm_starting, "source_candidate", fail)
    with pytest.raises(RestoreInterrupted, match="Start again"), started(storage, start_from=source.url):
        pass
    monkeypatch.undo()
    storage.train(4, start_from=source.url)
    assert storage.trained == [4]


@pytest.mark.parametrize(
    ("asked", "error", "cause"),
    [
        pytest.param("{source}@9", SnapshotNotFoundError, "no snapshot has this step", id="an unknown step"),
        pytest.param("{source}-not", RunNotFoundError, "no run log", id="an unknown run"),
        pytest.param("{own}@latest", ConfigurationError, "begin at a snapshot of its own", id="the run itself"),
    ],
)
def test_what_cannot_be_begun_from_is_refused_before_anything_is_chosen(
    source: RunStorage, storage: RunStorage, asked: str, error: type[Exception], cause: str
) -> None:
    address = asked.format(source=source.url, own=storage.url)
    with pytest.raises(error, match=cause), started(storage, start_from=address):
        pass
    assert storage.bodies(WarmStartChosen) == []


def test_a_model_of_another_shape_or_name_is_refused_and_unchanged(source: RunStorage, storage: RunStorage) -> None:
    training = Training(width=5)
    before = training.fingerprint()
    with pytest.raises(IncompatibleSnapshotError), started(storage, training, start_from=source.url):
        pass
    with (
        pytest.raises(ConfigurationError, match="the state has no such object: it has model"),
        started(storage, training, start_from=StartFrom(source.url, part="ema")),
    ):
        pass
    assert training.fingerprint() == before


def test_an_injected_pod_begins_where_its_environment_says_and_keeps_its_own_keys_to_itself() -> None:
    injected = {"CHECKPOINT_RUN": "c1/team/llama", "CHECKPOINT_URL": "s3://training/llama"}
    own = StoreSettings("s3://training/llama", endpoint="https://s3.own", credentials=Credentials.of({"ca.crt": "x"}))

    def start_from(**variables: str) -> StartFrom | None:
        return StartFrom.of_environment(RunEnvironment.parse({**injected, **variables}))

    assert start_from() is None
    like_own = start_from(CHECKPOINT_START_FROM="s3://training/base@best", CHECKPOINT_START_FROM_PART="model")
    assert like_own == StartFrom("s3://training/base@best", "model")
    assert like_own.settings(own) == replace(own, url="s3://training/base")
    elsewhere = start_from(
        CHECKPOINT_START_FROM="s3://training/base@best", CHECKPOINT_START_FROM_ENDPOINT="https://s3.other"
    )
    assert elsewhere is not None
    assert str(elsewhere.address) == "s3://training/base@best"
    assert elsewhere.settings(own) == StoreSettings("s3://training/base", endpoint="https://s3.other")


def test_hooks_hear_where_a_run_began(source: RunStorage, storage: RunStorage) -> None:
    heard: list[Any] = []
    storage.train(4, start_from=source.url, on_restore=heard.append, save=EVERY_STEP)
    storage.train(5, on_restore=heard.append)
    assert [(each.url, each.step) for each in heard] == [(source.url, 3), (storage.url, 4)]
