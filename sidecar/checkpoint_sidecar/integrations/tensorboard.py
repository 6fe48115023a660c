"""TensorBoard: figures of each save as scalars, and the snapshot's address as text."""

from __future__ import annotations

from typing import Any

from checkpoint_sidecar.training.hooks import CommitHook, CommittedSnapshot


def save_scalars(writer: Any) -> CommitHook:
    """Return a hook for ``Checkpointer(on_commit=...)`` that writes ``checkpoint/...`` scalars for each snapshot.

    Args:
        writer: A ``SummaryWriter``, or the folder for a new one.
    """
    if not hasattr(writer, "add_scalar"):
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(writer))

    def write(snapshot: CommittedSnapshot) -> None:
        figures = {
            "seconds": snapshot.seconds,
            "blocked_seconds": snapshot.blocked_seconds,
            "bytes": float(snapshot.bytes),
            **snapshot.metrics,
        }
        for name, value in figures.items():
            writer.add_scalar(f"checkpoint/{name}", value, snapshot.step)
        writer.add_text("checkpoint/snapshot", snapshot.address, snapshot.step)
        writer.flush()

    return write
