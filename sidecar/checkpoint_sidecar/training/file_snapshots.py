"""``FileSnapshots``: snapshots of what any trainer writes into a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from checkpoint_sidecar.engine.folders.tree import TrainerFolder
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.training.checkpointer import Checkpointer, Metrics
from checkpoint_sidecar.training.restoring import Restored
from checkpoint_sidecar.training.transfers import TransferProgress


class FileSnapshots:
    """Uploads the folder into which a trainer writes its checkpoints, and restores it before training starts.

    For DeepSpeed, Megatron, NeMo, verl, Keras and every other trainer that writes files. Each snapshot is the folder
    at one step: verified, committed atomically by all ranks, and kept or deleted by the policy of the run, like the
    snapshots of a ``Checkpointer``.

    >>> with FileSnapshots("/checkpoints", url="s3://training/llama-7b") as snapshots:
    ...     restored = snapshots.restore()
    ...     trainer.load("/checkpoints" if restored else None)
    ...     for step in range(restored.step + 1 if restored else 1, total + 1):
    ...         trainer.train(step)
    ...         if snapshots.step(step):
    ...             trainer.save("/checkpoints")
    ...             snapshots.save(step)

    Create it on every rank, in the main thread, after the process group exists. Every rank must call every method at
    the same point, also ranks that write no files; an error of one rank is raised on all. A process group is not
    required. Ranks may share the folder, on one node or on a shared filesystem, or have folders of their own: they find
    out by themselves, and a file that several of them see is uploaded once.

    Where the ranks share folders as they did when they saved, each folder gets its own files back. On other numbers of
    ranks or nodes each folder gets the files of all. Files that differ under one path are kept for each folder; a
    folder gets those of its lowest rank then.

    Args:
        folder: The folder; a ``TrainerFolder`` to exclude some of its files.
        url: Location of the run; see ``Checkpointer``.
        options: As in ``Checkpointer``: ``run``, ``save``, ``overwrite``, ``grace_seconds``, ``on_commit`` and others.

    Raises:
        ConfigurationError: The URL or an option is invalid.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | TrainerFolder,
        url: str | StoreSettings,
        **options: Any,
    ) -> None:
        self._use(Checkpointer({}, url, files=folder, **options))

    @classmethod
    def from_env(cls, folder: str | os.PathLike[str] | TrainerFolder, **options: Any) -> Self:
        """Create it in an injected pod; ``options`` as in the constructor.

        Raises:
            ConfigurationError: The pod was not injected; the message explains how to fix that.
        """
        made = cls.__new__(cls)
        made._use(Checkpointer.from_env({}, files=folder, **options))
        return made

    def _use(self, checkpointer: Checkpointer) -> None:
        assert checkpointer.folder is not None  # it was given
        self._checkpointer = checkpointer
        self._folder = checkpointer.folder

    def restore(self) -> Restored | None:
        """Start an attempt and fill the folder with its snapshot. Returns None for a fresh start.

        The folder changes only when everything was read and verified. Files that its latest snapshot has are removed;
        others, such as a checkpoint that was half written when the process was killed, are moved to ``.checkpoint-
        operator/set-aside`` until the next restore. What the folder excludes is not touched. At a fresh start the files
        stay if nothing was ever committed, and are set aside if the policy asks for it.

        Raises:
            RestoreError, RestoreInterrupted, IncompatibleSnapshotError, PrefixClaimedError: See
                ``Checkpointer.restore``.
        """
        return self._checkpointer.restore()

    def step(self, step: int, metrics: Metrics | None = None) -> bool:
        """Report that ``step`` is done, and return whether a snapshot is due: write a checkpoint, then call ``save``.

        It is due by the policy's schedule, on request, when a pod is evicted, and after SIGTERM if there is enough time
        (then ``should_stop`` is set, and ``save`` ends the process). Trainers with a schedule of their own may call
        ``save`` at other steps too.

        Args:
            metrics: Numbers by name, stored with the snapshot if there is one. Only those of rank 0 are used.

        Raises:
            Terminated: A pod of the run was asked to terminate, and no save is wanted or fits. Do not catch it.
            FencedError: A later attempt has started. Do not catch it.
            CheckpointError: A save failed, and ``save.onFailure`` or the number of failures requires training to stop.
        """
        return self._checkpointer.due(step, metrics)

    def save(
        self,
        step: int,
        metrics: Metrics | None = None,
        *,
        paths: Sequence[str] | None = None,
        wait: bool = False,
    ) -> None:
        """Save the folder as it is now, in the background. Call it when the checkpoint is written on every rank.

        The trainer may then delete or replace files. Those above 256 KiB are not copied but kept under a second name (a
        hard link): a change in place fails the save. Large files that did not change since the previous snapshot are
        copied by the store, where it can. A step that is saved already is not saved again.

        Args:
            metrics: See ``step``.
            paths: Files and folders below the folder that belong to the snapshot; None for everything. Only the value
                of the first rank of each folder counts.
            wait: Return after the commit.

        Raises:
            Terminated: After SIGTERM, once the save is committed or out of time. Do not catch it.
            ConfigurationError: The folder has something that cannot be stored, such as a socket.
            StateCopyError: A file cannot be read, or is being written.
            FencedError, CheckpointError: See ``step``.
        """
        self._folder.paths = paths
        self._checkpointer.save_due(step, metrics)
        if wait:
            self._checkpointer.wait()

    @property
    def should_stop(self) -> bool:
        """Whether a pod of the run was asked to terminate, as all ranks know since the last ``step``."""
        return self._checkpointer.stopping

    @property
    def progress(self) -> TransferProgress | None:
        """Progress of this rank's running save or restore, or None. May be read from any thread."""
        return self._checkpointer.progress

    def save_and_stop(self, within_seconds: float | None = None) -> None:
        """Request a last save and the end of training; see ``Checkpointer.save_and_stop``."""
        self._checkpointer.save_and_stop(within_seconds)

    def wait(self) -> None:
        """Wait for the running save, if there is one.

        Raises:
            CheckpointError: The save failed, or this attempt is fenced.
        """
        self._checkpointer.wait()

    def close(self) -> None:
        """Wait for the running save and release all resources. Idempotent.

        Raises:
            CheckpointError: The save failed.
        """
        self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._checkpointer.__exit__(kind, error, traceback)
