"""Lightning: a strategy that saves and restores through a ``Checkpointer``, and the callback that drives it.

>>> trainer = Trainer(strategy=with_snapshots("ddp"), callbacks=[SnapshotCallback("s3://training/llama-7b")])

Weights and optimizer state go from memory to the store in shards. What Lightning itself keeps (loops, schedulers,
callbacks, precision, data module, hyperparameters) goes into the same commit. Lightning collects and applies that part:
``trainer.save_checkpoint`` hands it to the strategy, and a restore hands it to the checkpoint connector.

A snapshot is taken where Lightning can continue exactly: after a batch, after the validation that follows a batch, or
after an epoch with its hooks. SIGTERM is served after the batch in any case, since a validation may take longer than
the grace period.
"""

from __future__ import annotations

from checkpoint_sidecar.integrations.lightning.callback import SnapshotCallback
from checkpoint_sidecar.integrations.lightning.strategy import SnapshotStrategy, with_snapshots

__all__ = ["SnapshotCallback", "SnapshotStrategy", "with_snapshots"]
