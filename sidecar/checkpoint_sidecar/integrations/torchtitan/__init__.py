"""torchtitan: a checkpoint manager that saves and restores a run.

Chosen in torchtitan's configuration, ``SnapshotManager`` does everything through a ``Checkpointer``: one log, fencing,
restore decisions, saves on SIGTERM, and retention by the operator.
"""

from __future__ import annotations

from checkpoint_sidecar.integrations.torchtitan.manager import SnapshotManager

__all__ = ["SnapshotManager"]
