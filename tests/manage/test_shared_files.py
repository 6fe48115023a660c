"""A run whose snapshots share files, seen through everything that looks at runs, changes them or copies them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from checkpoint_cli.verbs import Door
from checkpoint_sidecar import Checkpointer, export, open_run
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.commits import SnapshotCommittedSharing, shares_of
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.engine.verify import VerificationPass, read_manifest
from checkpoint_sidecar.manage.copying import copy_run
from support.commands import Program
from training.adapted import BASE_BYTES, Adapted, saving
from training.checkpointer_runs import RunStorage

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SHARE = SavePolicy(every_steps=None, every_seconds=None, unchanged="Share")


@pytest.fixture
def storage(tmp_path: Path) -> RunStorage:
    """Three snapshots; the last two share the frozen parameters of the first one, which was removed."""
    found = RunStorage(f"file://{tmp_path}/run")
    with saving(found.url, save=SHARE) as (_, step):
        for number in (1, 2, 3):
            step(number)
    open_run(found.url).remove(1)
    return found


def weights(url: str) -> list[torch.Tensor]:
    adapted = Adapted()
    with Checkpointer(adapted.state, url) as checkpointer:
        assert checkpointer.restore() is not None
    return [value.clone() for value in adapted.model.state_dict().values()]


def test_a_copy_shares_nothing_and_torch_reads_it(storage: RunStorage, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/copy"
    assert [each.step for each in copy_run(open_run(storage.url), open_run(target))] == [2, 3]
    copy = open_run(target)
    for snapshot in copy.snapshots():
        assert not isinstance(snapshot.commit, SnapshotCommittedSharing)
        manifest = read_manifest(copy.store, snapshot.commit)
        assert manifest.format == manifests.FORMAT
        assert manifest.size > BASE_BYTES
        assert copy.verify(snapshot, checksums=True).passed
    wanted = weights(storage.url)
    for info in [*storage.store.list("step-")]:
        storage.store.delete([info.key])
    state = {f"model.{name}": torch.zeros_like(value) for name, value in Adapted().model.state_dict().items()}
    dcp.load(state, storage_reader=dcp.FileSystemReader(f"{tmp_path}/copy/step-3"))
    assert all(map(torch.equal, state.values(), wanted))
    assert all(map(torch.equal, weights(target), wanted))


def test_an_export_has_the_shared_tensors(storage: RunStorage, tmp_path: Path) -> None:
    export(storage.url, f"{tmp_path}/exported", part="model")
    (file,) = Path(f"{tmp_path}/exported").glob("*.safetensors")
    found = load_file(file)
    assert len(found) == len(Adapted().model.state_dict())
    for value, name in zip(weights(storage.url), Adapted().model.state_dict(), strict=True):
        assert torch.equal(found[name], value)


def test_a_pass_over_all_snapshots_reads_a_shared_file_once(storage: RunStorage) -> None:
    run, seen = open_run(storage.url), list[int]()
    same_pass = VerificationPass()
    for snapshot in run.snapshots():
        check = run.verify(snapshot, checksums=True, progress=seen.append, same_pass=same_pass)
        assert check.passed
        assert check.bytes > BASE_BYTES
    assert BASE_BYTES < sum(seen) < 1.2 * BASE_BYTES


def test_a_damaged_shared_file_is_reported_for_each_snapshot_and_recorded_for_all(storage: RunStorage) -> None:
    run = open_run(storage.url)
    (files,) = shares_of(run.find(3).commit)
    holder = run.state.snapshots[files.snapshot]
    key = f"{holder.commit.path}/{min(files.by_name)}"
    data = bytearray(storage.store.get(key, max_bytes=1 << 30).data)
    data[len(data) // 2] ^= 1
    storage.store.put(key, data)
    same_pass = VerificationPass()
    checks = [run.verify(each, checksums=True, same_pass=same_pass, record=True) for each in run.snapshots()[:1]]
    assert [(check.passed, check.key) for check in checks] == [(False, key)]
    assert [each.failures for each in run.refresh().snapshots.values()] == [0, 1, 1]


def test_what_the_verbs_say(storage: RunStorage, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Program(Door.BUCKET, capsys)
    items = checkpoint("ls", storage.url, "-o", "json").json["items"]
    assert [item["sharedBytes"] > BASE_BYTES for item in items] == [True, True]
    retained = checkpoint("status", storage.url, "-o", "json").json["retainedBytes"]
    assert items[0]["bytes"] < retained < 1.2 * items[0]["bytes"]
    said = checkpoint("log", storage.url).output
    assert "of it shared with earlier snapshots" in said
    assert "Files that other snapshots share stay." in said
    assert checkpoint("verify", storage.url, "--all", "--checksums").status == 0
    assert checkpoint("doctor", storage.url).status == 0
