"""MLflow: tags with the newest snapshot's address, and figures of each save as metrics."""

from __future__ import annotations

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.training.hooks import CommitHook, CommittedSnapshot


def snapshot_tags(run_id: str = "") -> CommitHook:
    """Return a hook for ``Checkpointer(on_commit=...)`` that records each snapshot in an MLflow run.

    Metrics by step: ``checkpoint/seconds``, ``checkpoint/bytes``, and ``checkpoint/<name>`` for each metric of the
    snapshot. Tags of the newest one: ``checkpoint.snapshot``, ``checkpoint.step``, ``checkpoint.address``, and
    ``checkpoint.uri``, the URL of its folder.

    Args:
        run_id: The MLflow run; by default the active one of this thread.

    Raises:
        ConfigurationError: No MLflow run is active.
    """
    import mlflow

    if not run_id:
        active = mlflow.active_run()
        if active is None:
            raise ConfigurationError(
                "record snapshots in", "MLflow", "no run is active", "Call mlflow.start_run() first, or pass run_id."
            )
        run_id = active.info.run_id
    # The active run belongs to a thread, and hooks are called in another one.
    client = mlflow.MlflowClient()

    def record(snapshot: CommittedSnapshot) -> None:
        figures = {"seconds": snapshot.seconds, "bytes": float(snapshot.bytes), **snapshot.metrics}
        for name, value in figures.items():
            client.log_metric(run_id, f"checkpoint/{name}", value, step=snapshot.step)
        tags = {
            "snapshot": snapshot.snapshot,
            "step": str(snapshot.step),
            "address": snapshot.address,
            "uri": snapshot.folder,
        }
        for name, text in tags.items():
            client.set_tag(run_id, f"checkpoint.{name}", text)

    return record
