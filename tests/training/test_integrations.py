"""The hooks for experiment trackers, with the real packages where they are installed.

    uv pip install wandb mlflow-skinny tensorboard

They are not in the lock file: together they bring 66 packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from checkpoint_sidecar import CommittedSnapshot, ConfigurationError
from checkpoint_sidecar.attempt.save_target import decimal_strings
from checkpoint_sidecar.integrations.common import storable
from checkpoint_sidecar.integrations.mlflow import snapshot_tags
from checkpoint_sidecar.integrations.tensorboard import save_scalars
from checkpoint_sidecar.integrations.wandb import reference_artifacts

SNAPSHOT = CommittedSnapshot(
    step=100,
    snapshot="100-1-abcdefgh",
    attempt=1,
    url="s3://training/llama",
    folder="s3://training/llama/step-100/0001-abcdefgh-01234567",
    trigger="Schedule",
    metrics={"loss": 0.25},
    seconds=2.5,
    blocked_seconds=0.5,
    bytes=2**33,
)


def test_no_tracker_is_imported_with_the_hooks() -> None:
    modules = ", ".join(f"checkpoint_sidecar.integrations.{name}" for name in ("wandb", "mlflow", "tensorboard"))
    program = f"import sys, {modules}; print({{'wandb', 'mlflow', 'tensorboard'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_snapshot_becomes_a_reference_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ConfigurationError, match="no run is active"):
        reference_artifacts()
    run = wandb.init(project="checkpoints", dir=str(tmp_path), mode="offline")
    logged: list[tuple[object, list[str]]] = []
    original = run.log_artifact

    def watched(artifact: object, aliases: list[str]) -> object:
        logged.append((artifact, aliases))
        return original(artifact, aliases=aliases)

    monkeypatch.setattr(run, "log_artifact", watched)
    reference_artifacts()(SNAPSHOT)
    ((artifact, aliases),) = logged
    assert aliases == ["latest", "step-100"]
    assert artifact.type == "model"  # type: ignore[attr-defined]
    assert artifact.metadata["address"] == "s3://training/llama@100-1-abcdefgh"  # type: ignore[attr-defined]
    (entry,) = artifact.manifest.entries.values()  # type: ignore[attr-defined]
    assert (entry.ref, entry.local_path) == (SNAPSHOT.folder, None)
    run.finish()


def test_a_snapshot_is_recorded_in_the_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    # The small package has no other store without a server.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with pytest.raises(ConfigurationError, match="no run is active"):
        snapshot_tags()
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    with mlflow.start_run() as active:
        snapshot_tags()(SNAPSHOT)
    found = mlflow.MlflowClient().get_run(active.info.run_id).data
    assert found.metrics == {
        "checkpoint/seconds": 2.5,
        "checkpoint/bytes": float(2**33),
        "checkpoint/loss": 0.25,
    }
    assert found.tags["checkpoint.address"] == "s3://training/llama@100-1-abcdefgh"
    assert found.tags["checkpoint.uri"] == SNAPSHOT.folder


def test_a_snapshot_is_shown_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")

    save_scalars(tmp_path)(SNAPSHOT)
    shown = accumulator.EventAccumulator(str(tmp_path))
    shown.Reload()
    scalars = {tag: [(each.step, each.value) for each in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert json.loads(json.dumps(scalars)) == {
        "checkpoint/seconds": [[100, 2.5]],
        "checkpoint/blocked_seconds": [[100, 0.5]],
        "checkpoint/bytes": [[100, float(2**33)]],
        "checkpoint/loss": [[100, 0.25]],
    }


def test_a_trainer_may_log_more_than_a_log_entry_holds() -> None:
    logged = {"a" * 65: 0.5, "": 0.5} | {f"loss_{index}": 0.5 for index in range(40)}
    assert list(decimal_strings(storable(logged))) == [f"loss_{index}" for index in range(32)]
