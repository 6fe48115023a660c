"""torch_checkpointing: a run whose checkpoints it writes and reads. See ``SnapshotRun``.

torch_checkpointing lets every rank write files into ``tmp_step-N``, and rank 0 rename that folder to ``step-N``. Here
the files go to the folder of a new save, each with a receipt, and the rename makes a manifest of the receipts and
appends the commit to the run's log. Before that no reader finds the checkpoint. Bytes are stored once, and never
copied.
"""

from __future__ import annotations

from checkpoint_sidecar.integrations.torch_checkpointing.run import SnapshotRun
from checkpoint_sidecar.integrations.torch_checkpointing.storage import SnapshotStorage, SnapshotStorageConfig

__all__ = ["SnapshotRun", "SnapshotStorage", "SnapshotStorageConfig"]
