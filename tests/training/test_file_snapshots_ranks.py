"""``FileSnapshots`` on several real ranks: with one folder for all, and with one for each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch

from checkpoint_sidecar.core.folder_index import FolderIndex
from checkpoint_sidecar.core.log import RestoreFinished, SnapshotCommitted
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from localcluster.objectstore import REGION, ObjectStore
from training import example_ranks
from training.checkpointer_ranks import Outcome, die, run, terminate
from training.checkpointer_runs import RunStorage
from training.folder_ranks import SIZE, FolderJob, dawdle_in_files, spoil
from training.folder_trees import staged, tree

pytestmark = pytest.mark.distributed


@dataclass
class S3Storage(RunStorage):
    """A run in a bucket."""

    settings: StoreSettings | None = None

    @property
    def store(self) -> Store:
        assert self.settings is not None
        return open_store(self.settings)


@pytest.fixture
def in_bucket(object_store: ObjectStore, bucket: str) -> S3Storage:
    keys = {name: object_store.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    settings = StoreSettings(f"s3://{bucket}/run", object_store.endpoint, REGION, credentials=Credentials.of(keys))
    return S3Storage(settings.url, settings=settings)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"{tmp_path}/checkpoints"


def described(storage: RunStorage, step: int) -> tuple[Manifest, FolderIndex]:
    commit, store = storage.snapshot(step).commit, storage.store
    read = partial(store.get, max_bytes=1 << 20)
    manifest = msgspec.json.decode(read(f"{commit.path}/manifest.json").data, type=Manifest)
    return manifest, msgspec.json.decode(read(f"{commit.path}/files.json").data, type=FolderIndex)


def undisturbed(total: int) -> torch.Tensor:
    model = torch.zeros(SIZE)
    for step in range(1, total + 1):
        model = torch.sin(model * 1.1 + step)
    return model


def models(outcomes: list[Outcome]) -> list[torch.Tensor]:
    return [outcome.final.tensors[0] for outcome in outcomes if outcome.final is not None]


def steps(storage: RunStorage) -> list[int]:
    return [commit.step for commit in storage.bodies(SnapshotCommitted)]


@pytest.mark.store
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own-folders"])
def test_a_rank_that_is_killed_while_it_uploads_costs_the_steps_since_the_last_commit(
    in_bucket: S3Storage, folder: str, tmp_path: Path, own: bool
) -> None:
    assert in_bucket.settings is not None
    job = partial(FolderJob, in_bucket.settings, total=5, folder=folder, own_folders=own)
    run(FolderJob(in_bucket.settings, total=2, folder=folder, own_folders=own), tmp_path)
    died = run(job(on_upload=partial(die, who=1, where="step-4/")), tmp_path)
    assert died[1].code == -9
    assert died[0].code not in (0, None)
    assert steps(in_bucket) == [2]
    assert not in_bucket.store.stat("step-4/.metadata")
    resumed = run(job(), tmp_path)
    assert [outcome.steps for outcome in resumed] == [(3, 4, 5)] * 2
    assert all(torch.equal(model, undisturbed(5)) for model in models(resumed))
    assert len(models(resumed)) == 2
    assert steps(in_bucket) == [2, 4]
    for rank in range(2):
        place = job().place(rank)
        assert [each.name for each in place.glob("checkpoint-*")] == ["checkpoint-4"]
        assert not staged(place)
    assert all(outcome.verified == "Checksums" for outcome in in_bucket.bodies(RestoreFinished))


def test_sigterm_at_one_rank_while_a_save_runs_saves_the_step_and_stops_all(
    storage: RunStorage, folder: str, tmp_path: Path
) -> None:
    slow = partial(dawdle_in_files, who=1, seconds=0.5)
    # On a busy machine the default of 20 s may end before the save does.
    job = FolderJob(
        storage.url,
        total=9,
        folder=folder,
        on_step=partial(terminate, to=1, at=3),
        on_upload=slow,
        grace_seconds=200.0,
    )
    evicted = run(job, tmp_path)
    assert [outcome.code for outcome in evicted] == [143, 143]
    stopped = evicted[0].steps[-1]
    assert steps(storage) == [2, stopped]
    assert storage.snapshot(stopped).commit.trigger == "Termination"
    resumed = run(FolderJob(storage.url, total=9, folder=folder), tmp_path)
    assert resumed[0].steps[0] == stopped + 1
    assert all(torch.equal(model, undisturbed(9)) for model in models(resumed))


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own-folders"])
def test_one_and_three_ranks_continue_what_two_have_saved(
    storage: RunStorage, folder: str, tmp_path: Path, own: bool
) -> None:
    for ranks, total in ((2, 2), (1, 4), (3, 6)):
        there = f"{folder}-of-{ranks}"
        job = FolderJob(storage.url, total=total, folder=there, own_folders=own, world_size=ranks)
        outcomes = run(job, tmp_path)
        assert [outcome.code for outcome in outcomes] == [0] * ranks
        assert all(torch.equal(model, undisturbed(total)) for model in models(outcomes))
    assert [commit.world_size for commit in storage.bodies(SnapshotCommitted)] == [2, 1, 3]


def test_files_that_ranks_share_are_uploaded_once_and_by_all_of_them(
    storage: RunStorage, folder: str, tmp_path: Path
) -> None:
    run(FolderJob(storage.url, total=2, folder=folder), tmp_path)
    manifest, index = described(storage, 2)
    files = [file for file in manifest.files if file.name.endswith(".files")]
    assert (
        sum(file.size for file in files)
        == index.size
        == sum(each.stat().st_size for each in Path(folder).glob("checkpoint-2/*"))
    )
    assert {file.name.split("_")[2] for file in files} == {"0", "1"}, "both ranks have uploaded"
    assert index.folders == ((0, 1),)


def test_equal_files_of_two_nodes_are_uploaded_once_and_different_ones_are_kept_for_each(
    storage: RunStorage, folder: str, tmp_path: Path
) -> None:
    run(FolderJob(storage.url, total=2, folder=folder, own_folders=True), tmp_path)
    _, index = described(storage, 2)
    assert index.folders == ((0,), (1,))
    found = [(entry.path.split("/")[1], entry.folders) for entry in index.entries]
    assert sorted(found) == [
        ("log.txt", (0,)),
        ("log.txt", (1,)),
        ("model.pt", (0, 1)),
        ("rank-0.bin", (0,)),
        ("rank-1.bin", (1,)),
    ]
    again = run(FolderJob(storage.url, total=2, folder=f"{folder}-new", own_folders=True), tmp_path)
    assert [outcome.code for outcome in again] == [0, 0]
    for rank in range(2):
        assert tree(Path(f"{folder}-new-{rank}")) == tree(Path(f"{folder}-{rank}"))
    run(FolderJob(storage.url, total=2, folder=f"{folder}-one", world_size=1), tmp_path)
    together = tree(Path(f"{folder}-one"))
    assert {path.split("/")[1] for path in together} >= {"model.pt", "rank-0.bin", "rank-1.bin", "log.txt"}
    assert together["checkpoint-2/log.txt"] == b"0", "of its lowest rank"


def test_what_one_rank_cannot_save_fails_the_save_on_all(storage: RunStorage, folder: str, tmp_path: Path) -> None:
    spoiled = partial(spoil, who=1, folder=f"{folder}-1")
    job = FolderJob(storage.url, total=3, folder=folder, own_folders=True, on_step=spoiled, on_failure="Raise")
    outcomes = run(job, tmp_path)
    for outcome in outcomes:
        assert outcome.error is not None
        assert "pipe: it is neither a file nor a folder nor a link" in outcome.error[1]
    assert steps(storage) == []
    assert not any(staged(Path(f"{folder}-{rank}")) for rank in range(2))


# The example


def run_example(url: str, folder: Path, steps: int) -> None:
    example_ranks.run_example(
        "files_train.py", url, "--folder", str(folder), "--steps", str(steps), "--save-every", "3"
    )


def test_the_example_continues_bit_for_bit_on_a_new_node(storage: RunStorage, tmp_path: Path) -> None:
    run_example(storage.url, tmp_path / "first", 4)
    run_example(storage.url, tmp_path / "second", 8)
    run_example(f"{storage.url}-undisturbed", tmp_path / "undisturbed", 8)
    ends = []
    for name in ("second", "undisturbed"):
        (place,) = (tmp_path / name).glob("checkpoint-*")
        ends.append([place.name, *(torch.load(place / each) for each in ("model.pt", "random-0.pt", "random-1.pt"))])
    assert json.dumps(ends[0], default=lambda value: value.tolist()) == json.dumps(
        ends[1], default=lambda value: value.tolist()
    )
