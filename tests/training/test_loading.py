"""A snapshot is loaded for evaluation, by any number of ranks, and the bucket stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import FileSystemReader

from checkpoint_sidecar import (
    Checkpointer,
    CorruptSnapshotError,
    IncompatibleSnapshotError,
    RunNotFoundError,
    SnapshotNotFoundError,
    copy_run,
    load,
    open_run,
)
from checkpoint_sidecar.core.log import SnapshotRead
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import restoring
from localcluster.objectstore import ObjectStore
from support.s3servers import Server
from training.ranks import run_ranks

SCRIPT = Path(__file__).with_name("loading_ranks.py")
NO_GROUP = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.mark.store
@pytest.mark.distributed
def test_one_and_two_ranks_load_what_two_and_one_saved(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server("seaweedfs", object_store.endpoint, object_store.access_key, object_store.secret_key)
    for savers, loaders in ((2, 1), (1, 2)):
        settings = server.settings()
        kept = {"url": settings.url, "endpoint": settings.endpoint, "region": settings.region}
        store = open_store(settings)
        for saves, ranks in (("yes", savers), ("no", loaders)):
            monkeypatch.setenv("SAVES", saves)
            folder = tmp_path / f"{savers}-{ranks}-{saves}"
            folder.mkdir()
            (folder / "settings.json").write_text(json.dumps(kept | {"credentials": server.credentials}))
            before = {info.key: info.modified for info in store.list()}
            for results in run_ranks(SCRIPT, ranks, folder):
                assert {name: text for name, text in results.items() if text} == {}
            if saves == "no":
                assert {info.key: info.modified for info in store.list()} == before, "a load writes nothing"


def saved(url: str, *steps: int) -> nn.Module:
    model = nn.Linear(8, 8)
    with Checkpointer({"model": model}, url) as checkpointer:
        checkpointer.restore()
        for step in steps:
            checkpointer.save(step)
    return model


@NO_GROUP
def test_a_process_without_a_group_loads_by_address(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/run"
    model, other = saved(url, 100, 200), nn.Linear(8, 8)
    assert load(f"{url}@100", other).step == 100
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))
    assert load(url, nn.Linear(8, 8)).step == load(f"{url}@latest", nn.Linear(8, 8)).step == 200
    with pytest.raises(RunNotFoundError, match="no run log"):
        load(f"file://{tmp_path}/other", other)


@NO_GROUP
def test_a_copy_is_loaded_by_us_and_by_torchs_own_reader_and_training_continues_in_it(tmp_path: Path) -> None:
    model = saved(f"file://{tmp_path}/run", 100, 200)
    url = f"file://{tmp_path}/elsewhere/copy"
    assert [each.step for each in copy_run(open_run(f"file://{tmp_path}/run"), open_run(url))] == [100, 200]
    ours = nn.Linear(8, 8)
    assert load(url, ours).step == 200
    state = {"model": {name: torch.zeros_like(value) for name, value in model.state_dict().items()}}
    for step in (100, 200):
        dcp.load(state, storage_reader=FileSystemReader(tmp_path / "elsewhere" / "copy" / f"step-{step}"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])
        assert torch.equal(value, state["model"][name])
    with Checkpointer({"model": nn.Linear(8, 8)}, url) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert restored.step == 200
        checkpointer.save(300)
    assert [each.step for each in open_run(url).snapshots()] == [100, 200, 300]


@NO_GROUP
def test_a_load_announces_what_it_reads_where_retention_might_delete_it(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/run"
    saved(url, 100, 200)
    run = open_run(url)
    run.configure(Policy(retention=RetentionPolicy(keep_last=1)))
    load(f"{url}@100", nn.Linear(8, 8))
    with pytest.raises(IncompatibleSnapshotError):
        load(f"{url}@100", nn.Linear(4, 4))
    run.refresh()
    bodies = [entry.body for entry in run.entries()]
    read = [(body.snapshot, body.seconds > 0) for body in bodies if isinstance(body, SnapshotRead)]
    assert read == 2 * [(run.find(100).id, True), (run.find(100).id, False)]


@NO_GROUP
def test_damage_is_an_error_and_no_other_snapshot_is_taken(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/run"
    saved(url, 100, 200)
    run = open_run(url)
    head = run.refresh().head
    (data,) = tmp_path.glob("run/step-200/*/__0_0.distcp")
    data.write_bytes(data.read_bytes()[::-1])
    with pytest.raises(CorruptSnapshotError):
        load(url, nn.Linear(8, 8))
    assert run.refresh().head == head, "a load does not record what it found"


@NO_GROUP
def test_names_of_one_side_are_reported_without_strict(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/run"
    saved(url, 100)
    loaded = load(url, nn.Linear(8, 8, bias=False), strict=False)
    assert (loaded.missing, loaded.unused) == ((), ("model.bias",))


@NO_GROUP
def test_a_snapshot_is_not_pruned_while_it_is_read_and_one_that_is_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/run"
    saved(url, 100, 200)
    run = open_run(url)
    run.configure(Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0)))
    run.verify(200, checksums=True, record=True)
    open_metadata = restoring.SnapshotLoading._open

    def pruned(self: restoring.SnapshotLoading) -> None:
        open_metadata(self)
        assert run.prune().purge == ()

    def removed(self: restoring.SnapshotLoading) -> None:
        open_metadata(self)
        run.remove(100)

    monkeypatch.setattr(restoring.SnapshotLoading, "_open", pruned)
    assert load(f"{url}@100", nn.Linear(8, 8)).step == 100
    monkeypatch.setattr(restoring.SnapshotLoading, "_open", removed)
    with pytest.raises(SnapshotNotFoundError, match=r"it is purged\. .*Retention waits for readers"):
        load(f"{url}@100", nn.Linear(8, 8))
