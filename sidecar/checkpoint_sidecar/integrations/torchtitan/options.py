"""What torchtitan's options for checkpoints mean for a run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torchtitan.components.checkpointer.base import MODEL, BaseCheckpointManager
from torchtitan.tools import filesystem

from checkpoint_sidecar.attempt.warm_start import StartFrom
from checkpoint_sidecar.core.environment import URL
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.integrations.common import checkpointer_at
from checkpoint_sidecar.training.checkpointer import Checkpointer

CONFIGURE = "configure torchtitan's checkpoint"


def check(config: BaseCheckpointManager.Config) -> None:
    """Raise a ``ConfigurationError`` for an option that asks for something that is decided elsewhere."""
    refused = {
        "keep_latest_k": ("snapshots are deleted by the run's retention", "Set retention.keepLast of the Checkpoint."),
        "last_save_model_only": ("the last snapshot must be one to continue from", "Use `checkpoint export` for it."),
        "last_save_in_hf": ("the last snapshot must be one to continue from", "Use `checkpoint export` for it."),
        "load_only": ("a start that saves nothing would stop the one that trains", "Use checkpoint_sidecar.load."),
    }
    for name, (cause, hint) in refused.items():
        if getattr(config, name):
            raise ConfigurationError(CONFIGURE, f"{name}={getattr(config, name)}", cause, hint)


def opened(state: dict[str, Any], config: BaseCheckpointManager.Config, folder: str) -> Checkpointer:
    """Open the run at a URL or in a local folder, or that of the injected pod.

    Raises:
        ConfigurationError: The pod belongs to a run elsewhere.
    """
    options: dict[str, Any] = {"save": SavePolicy(every_steps=config.interval, every_seconds=None)}
    path = config.initial_load_path
    if path and not config.initial_load_in_hf and names_a_run(path):
        options["start_from"] = StartFrom(path, MODEL if config.initial_load_model_only else "")
    injected = os.environ.get(URL)
    if injected and filesystem.is_remote(folder) and folder.rstrip("/") != injected.rstrip("/"):
        cause = f"this pod belongs to the run at {injected}"
        raise ConfigurationError(CONFIGURE, f"folder={folder}", cause, "Leave the folder out.")
    url = folder if filesystem.is_remote(folder) else Path(folder).absolute().as_uri()
    return checkpointer_at("" if injected else url, state, **options)


def names_a_run(path: str) -> bool:
    """Return whether a path is a run's, and not that of a checkpoint of torch, which torchtitan keeps in ``step-N``."""
    name = path.rstrip("/").rpartition("/")[2]
    return filesystem.is_remote(path) and not re.fullmatch(r"step-\d+", name)
