"""Ray Train: ``ray.train.report`` commits a snapshot of the folder, and Ray keeps a reference to it.

Ray names, counts and deletes the checkpoints that it knows. What it gets to know is a small file with the snapshot's
address, so that the snapshots themselves are left to the run's retention.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.training.file_snapshots import FileSnapshots

REFERENCE = "snapshot.json"
"""The only file of a checkpoint as Ray knows it: ``{"snapshot": "<url>@<step>"}``."""


class RaySnapshots(FileSnapshots):
    """The ``FileSnapshots`` of one worker of a Ray trainer, saved with ``ray.train.report``.

    >>> with RaySnapshots("/tmp/checkpoint", "s3://training/llama-7b") as snapshots:
    ...     step = snapshots.restore()
    ...     ...
    ...     ray.train.report(metrics, checkpoint=snapshots.checkpoint, checkpoint_upload_fn=snapshots.upload(step))

    Collective: every worker creates it in its training function, and reports at the same steps with this checkpoint,
    also a worker that wrote no file. Needs the process group of ``TorchTrainer``. ``restore`` takes the place of
    ``ray.train.get_checkpoint``, also after Ray has replaced a worker.

    Args:
        folder: Where the training function writes, on the worker's machine. Workers may share it.
        url: Location of the run; see ``FileSnapshots``.
        options: As in ``FileSnapshots``.
    """

    @property
    def checkpoint(self) -> Any:
        """The ``ray.train.Checkpoint`` of the folder."""
        return ray.train.Checkpoint.from_directory(str(self._root))

    @property
    def _root(self) -> Path:
        return Path(self._folder.folder.path)

    def upload(self, step: int, metrics: dict[str, Any] | None = None) -> Callable[[Any, str], Any]:
        """Return the ``checkpoint_upload_fn`` of a step, for ``ray.train.report`` in the mode ``SYNC``.

        It returns when the snapshot is committed. A step that is saved already is not saved again.

        Args:
            metrics: Numbers by name, stored with the snapshot. Only those of rank 0 are used.
        """

        def save(checkpoint: Any, name: str) -> Any:
            if Path(checkpoint.path) != self._root:
                cause = f"the snapshots of this run are of {self._root}"
                raise ConfigurationError("save", checkpoint.path, cause, "Report RaySnapshots.checkpoint.")
            self.save(step, metrics, wait=True)
            address = f"{self._checkpointer.settings.url}@{step}"
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / REFERENCE).write_text(json.dumps({"snapshot": address}))
                storage = ray.train.get_context().get_storage()
                return storage.persist_current_checkpoint(ray.train.Checkpoint.from_directory(folder), name)

        return save
