"""What the adapters of trainers do alike: open the run, name objects, and choose metrics that a log entry can hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from checkpoint_sidecar.attempt.save_target import LONGEST_NAME, MOST_METRICS
from checkpoint_sidecar.engine.folders.tree import TrainerFolder
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.training.checkpointer import Checkpointer
from checkpoint_sidecar.training.file_snapshots import FileSnapshots


def checkpointer_at(url: str | StoreSettings, state: MutableMapping[str, Any], **options: Any) -> Checkpointer:
    """Open a run at a URL, or that of the injected pod if the URL is empty; ``options`` as for ``Checkpointer``."""
    return Checkpointer(state, url, **options) if url else Checkpointer.from_env(state, **options)


def file_snapshots_at(url: str | StoreSettings, folder: TrainerFolder, **options: Any) -> FileSnapshots:
    """Open a run of files in the same way."""
    return FileSnapshots(folder, url, **options) if url else FileSnapshots.from_env(folder, **options)


def numbered(name: str, objects: Iterable[Any]) -> dict[str, Any]:
    """Name several objects of one kind as trainers name their files: the first one without a number."""
    return {f"{name}_{index}" if index else name: each for index, each in enumerate(objects)}


def storable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first metrics that a log entry holds. A trainer logs what it likes, and no save should fail for it."""
    fitting = ((name, value) for name, value in metrics.items() if 0 < len(name) <= LONGEST_NAME)
    return dict(itertools.islice(fitting, MOST_METRICS))
