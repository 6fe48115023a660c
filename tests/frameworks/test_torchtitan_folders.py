"""torchtitan's own checkpoint manager at a URL, after `install()`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torchtitan.components.checkpointer import CheckpointManager, base

from checkpoint_sidecar import CheckpointWriter, ConfigurationError
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.integrations.torchtitan_folders import CheckpointFolders, install, uninstall
from frameworks.gangs import committed
from frameworks.test_torchtitan_manager import Parts, trained
from localcluster.objectstore import ObjectStore

pytestmark = [pytest.mark.store, pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

FOLDERS = CheckpointFolders()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def url(object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    install()
    yield f"s3://{bucket}/titan"
    uninstall()


def manager_at(url: str, parts: Parts, **options: Any) -> Any:
    return CheckpointManager.Config(enable=True, folder=url, interval=1, **options).build(
        dataloader=parts.loader,
        model_parts=[parts.model],
        optimizers=parts.optimizers,
        lr_schedulers=parts.schedulers,
        states={"train_state": parts.trainer},
        sd_adapter=None,
        base_folder="/nowhere",
    )


def test_the_newest_checkpoints_stay_and_the_others_go(url: str) -> None:
    parts = Parts()
    manager = manager_at(url, parts, keep_latest_k=2, async_mode="async")
    assert not manager.load()
    for _ in range(4):
        parts.train()
        manager.save(parts.trainer.step)
    manager.maybe_wait_for_saving()
    manager._purge_stale_checkpoints()  # the last one ran while the last save was under way
    manager.close()
    assert FOLDERS.listdir(url) == ["step-3", "step-4"]
    after = Parts()
    again = manager_at(url, after, keep_latest_k=2)
    assert again.load()
    again.close()
    assert after.trainer.step == 4
    assert after.weight.equal(parts.weight)


def test_folders_of_saves_that_failed_do_not_push_out_the_last_whole_checkpoint(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts = Parts()
    parts.train()
    manager = manager_at(url, parts, keep_latest_k=2)
    manager.save(1)
    for step in (2, 3):
        _begin_and_die(f"{url}/step-{step}")
    manager._purge_stale_checkpoints()
    manager.close()
    assert FOLDERS.listdir(url) == ["step-1", "step-2", "step-3"]
    assert "no later checkpoint is whole" in caplog.text
    after = Parts()
    again = manager_at(url, after, keep_latest_k=2)
    assert again.load()
    again.close()
    assert after.trainer.step == 1


def _begin_and_die(url: str) -> None:
    """What a save leaves that was killed before its commit."""
    writer = CheckpointWriter(url)
    writer._target_for(1).begin()


def test_snapshots_of_a_run_are_left_to_its_retention(url: str, tmp_path: Path) -> None:
    del url
    trained(tmp_path, 3, interval=1)
    run = f"file://{tmp_path}/run"
    with pytest.raises(ConfigurationError, match="whose retention deletes snapshots"):
        FOLDERS.remove(f"{run}/step-1")
    assert committed(run) == [1, 2, 3]
    assert FOLDERS.isfile(f"{run}/step-1/.metadata")


def test_files_and_folders_differ(url: str) -> None:
    parts = Parts()
    manager = manager_at(url, parts, keep_latest_k=0)
    manager.save(1)
    manager.save(2)
    manager.close()
    assert FOLDERS.isdir(url)
    assert FOLDERS.isdir(f"{url}/step-1/")
    assert not FOLDERS.isdir(f"{url}/step-1/.metadata")
    assert not FOLDERS.isdir(f"{url}/step")
    assert FOLDERS.isfile(f"{url}/step-1/.metadata")
    assert not FOLDERS.isfile(f"{url}/step-1")
    assert not FOLDERS.isfile(f"{url}/step-3/.metadata")
    with pytest.raises(CheckpointError, match="no later checkpoint"):
        FOLDERS.remove(f"{url}/step-2")
    FOLDERS.remove(f"{url}/step-1")
    assert not FOLDERS.isdir(f"{url}/step-1")


def test_local_paths_are_torchtitans_own(url: str, tmp_path: Path) -> None:
    del url
    parts = Parts()
    stock = parts.manager(tmp_path, CheckpointManager, keep_latest_k=2, interval=1)
    for step in (1, 2, 3):
        stock.save(step)
    stock.close()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-2", "step-3"]


@pytest.mark.skipif(not hasattr(base, "CheckpointStorage"), reason="torchtitan has no CheckpointStorage yet")
def test_it_is_the_storage_that_later_versions_ask_for() -> None:
    assert isinstance(FOLDERS, base.CheckpointStorage)
