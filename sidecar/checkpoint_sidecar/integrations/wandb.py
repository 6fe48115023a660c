"""Weights & Biases: each snapshot becomes a version of an artifact that refers to the bucket; no data is uploaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.training.hooks import CommitHook, CommittedSnapshot

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


def reference_artifacts(run: Any = None, *, name: str = "") -> CommitHook:
    """Return a hook for ``Checkpointer(on_commit=...)`` that logs a reference artifact for each snapshot.

    Args:
        run: The run of ``wandb.init``; by default the active one.
        name: Name of the artifact; by default ``checkpoint-<id of the run>``.

    Raises:
        ConfigurationError: No W&B run is active.
    """
    import wandb

    run = run or wandb.run
    if run is None:
        raise ConfigurationError("log artifacts to", "W&B", "no run is active", "Call wandb.init() first.")
    artifact_name = _NOT_IN_NAMES.sub("-", name or f"checkpoint-{run.id}")
    make: Callable[..., Any] = wandb.Artifact

    def log(snapshot: CommittedSnapshot) -> None:
        metadata = {
            "snapshot": snapshot.snapshot,
            "step": snapshot.step,
            "attempt": snapshot.attempt,
            "address": snapshot.address,
            "bytes": snapshot.bytes,
            "seconds": snapshot.seconds,
            "trigger": snapshot.trigger,
            "metrics": dict(snapshot.metrics),
        }
        artifact = make(artifact_name, type="model", metadata=metadata)
        # Without checksums W&B asks the bucket for nothing: it may have no credentials for it.
        artifact.add_reference(snapshot.folder, name="snapshot", checksum=False)
        run.log_artifact(artifact, aliases=["latest", f"step-{snapshot.step}"])

    return log
