"""Checkpoints of PyTorch training runs in object storage: atomic, fenced, verified.

``Checkpointer`` is the main way in; ``open_run`` looks at a run from outside of training; ``CheckpointWriter``,
``CheckpointReader`` and ``install`` serve existing ``torch.distributed.checkpoint`` code. Everything except errors is
imported when it is first used, so that the operator and the command line do without torch, and a help page without
msgspec.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from checkpoint_sidecar.core.errors import (
    AmbiguousSelectorError,
    ChangeRefusedError,
    CheckpointError,
    CheckpointExistsError,
    ConfigurationError,
    CorruptSnapshotError,
    FencedError,
    IncompatibleSnapshotError,
    PrefixClaimedError,
    RestoreError,
    RestoreInterrupted,
    RunManagedError,
    RunNotFoundError,
    SnapshotNotFoundError,
    StoreError,
)

if TYPE_CHECKING:
    from checkpoint_sidecar.attempt.warm_start import StartFrom
    from checkpoint_sidecar.core.owner import Owner
    from checkpoint_sidecar.core.policy import SavePolicy
    from checkpoint_sidecar.engine.folders.tree import TrainerFolder
    from checkpoint_sidecar.exports.exporting import export
    from checkpoint_sidecar.exports.folders import fetch_files
    from checkpoint_sidecar.exports.record import ExportRecord
    from checkpoint_sidecar.manage.copying import copy_run
    from checkpoint_sidecar.manage.forking import fork_run
    from checkpoint_sidecar.manage.stored_run import StoredRun, open_run
    from checkpoint_sidecar.store.access import Credentials, StoreSettings
    from checkpoint_sidecar.training.checkpointer import Checkpointer
    from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter, install
    from checkpoint_sidecar.training.dcp.load_planner import StrictLoadPlanner
    from checkpoint_sidecar.training.dcp.save_planner import BalancedSavePlanner
    from checkpoint_sidecar.training.file_snapshots import FileSnapshots
    from checkpoint_sidecar.training.hooks import CommittedSnapshot, RestoredSnapshot
    from checkpoint_sidecar.training.loading import load
    from checkpoint_sidecar.training.safetensors_loading import LoadedWeights, load_safetensors
    from checkpoint_sidecar.training.signals import Terminated
    from checkpoint_sidecar.training.state.application import Optional, PerRank
    from checkpoint_sidecar.training.state.randomness import RandomState

_LAZY = {
    "BalancedSavePlanner": "training.dcp.save_planner",
    "CheckpointReader": "training.dcp.dropin",
    "CheckpointWriter": "training.dcp.dropin",
    "Checkpointer": "training.checkpointer",
    "CommittedSnapshot": "training.hooks",
    "Credentials": "store.access",
    "FileSnapshots": "training.file_snapshots",
    "ExportRecord": "exports.record",
    "LoadedWeights": "training.safetensors_loading",
    "Optional": "training.state.application",
    "Owner": "core.owner",
    "PerRank": "training.state.application",
    "RandomState": "training.state.randomness",
    "RestoredSnapshot": "training.hooks",
    "SavePolicy": "core.policy",
    "StartFrom": "attempt.warm_start",
    "StoreSettings": "store.access",
    "StoredRun": "manage.stored_run",
    "StrictLoadPlanner": "training.dcp.load_planner",
    "Terminated": "training.signals",
    "TrainerFolder": "engine.folders.tree",
    "copy_run": "manage.copying",
    "export": "exports.exporting",
    "fetch_files": "exports.folders",
    "fork_run": "manage.forking",
    "install": "training.dcp.dropin",
    "load": "training.loading",
    "load_safetensors": "training.safetensors_loading",
    "open_run": "manage.stored_run",
}

__all__ = [
    "AmbiguousSelectorError",
    "BalancedSavePlanner",
    "ChangeRefusedError",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointReader",
    "CheckpointWriter",
    "Checkpointer",
    "CommittedSnapshot",
    "ConfigurationError",
    "CorruptSnapshotError",
    "Credentials",
    "ExportRecord",
    "FencedError",
    "FileSnapshots",
    "IncompatibleSnapshotError",
    "LoadedWeights",
    "Optional",
    "Owner",
    "PerRank",
    "PrefixClaimedError",
    "RandomState",
    "RestoreError",
    "RestoreInterrupted",
    "RestoredSnapshot",
    "RunManagedError",
    "RunNotFoundError",
    "SavePolicy",
    "SnapshotNotFoundError",
    "StartFrom",
    "StoreError",
    "StoreSettings",
    "StoredRun",
    "StrictLoadPlanner",
    "Terminated",
    "TrainerFolder",
    "copy_run",
    "export",
    "fetch_files",
    "fork_run",
    "install",
    "load",
    "load_safetensors",
    "open_run",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
