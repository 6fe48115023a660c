"""``fetch_files``: copies the files of a trainer's folder out of a snapshot, without a run of its own."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError, SnapshotNotFoundError
from checkpoint_sidecar.core.folder_index import WORK_FOLDER, entries_for
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.engine.folders.placing import IncomingFolder
from checkpoint_sidecar.engine.folders.reading import read_index
from checkpoint_sidecar.engine.folders.tree import TrainerFolder, remove
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.manage.addressed import open_addressed
from checkpoint_sidecar.manage.changes import why_gone, why_unreadable
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.store.access import StoreSettings

_LEVEL: VerifyLevel = "Checksums"


@dataclass(frozen=True, slots=True)
class FetchedFiles:
    """The files that were copied.

    Attributes:
        snapshot: Id of their snapshot.
        files: Number of files.
    """

    snapshot: str
    step: int
    files: int
    bytes: int


def fetch_files(
    url: str | StoreSettings | StoredRun,
    folder: str | os.PathLike[str],
    *,
    selector: str | int = "",
) -> FetchedFiles:
    """Copy the files of a snapshot into an empty folder, to evaluate or publish what a trainer wrote.

    >>> fetch_files("s3://training/llama-7b@best", "best")

    Starts no attempt. Where nodes had folders of their own, the folder gets the files of all, of different ones under
    one path those of rank 0. The files appear when all are complete and verified. Needs no torch.

    Args:
        url: ``<url>``, ``<url>@latest``, ``<url>@best``, ``<url>@<step>`` or ``<url>@<id>``; or settings, or a run.
        folder: Empty, or to be created.
        selector: The snapshot, where ``url`` does not name it.

    Raises:
        RunNotFoundError, SnapshotNotFoundError, AmbiguousSelectorError: Nothing, or not one thing, fits the address; or
            the snapshot was deleted meanwhile.
        ConfigurationError: The snapshot has no files, or the folder is not empty, too small or read-only.
        CorruptSnapshotError: Stored bytes are not those that were committed.
        IncompatibleSnapshotError: A newer version wrote it, or it names places outside of a folder.
        StoreError, LogError: The bucket cannot be read.
    """
    run, selector = open_addressed(url, selector)
    snapshot = run.find(selector or "latest")
    subject = f"{run.url}@{snapshot.id}"
    with run.reading(snapshot.id):
        if cause := why_unreadable(run.state, snapshot.id):
            raise SnapshotNotFoundError("copy the files of", subject, cause, "Choose another snapshot.")
        try:
            return _fetched(run, snapshot.id, TrainerFolder(folder), subject)
        except CheckpointError as error:
            if cause := why_gone(run.refresh, snapshot.id):
                raise SnapshotNotFoundError("copy the files of", subject, cause, "Choose another snapshot.") from error
            raise


def _fetched(run: StoredRun, identifier: str, folder: TrainerFolder, subject: str) -> FetchedFiles:
    commit, settings = run.state.snapshots[identifier].commit, EngineSettings.from_environment()
    manifest = read_manifest(run.store, commit)
    index = read_index(run.store, commit.path, manifest, level=_LEVEL, settings=settings)
    if index is None:
        hint = "load and export read the tensors of a Checkpointer."
        raise ConfigurationError("copy the files of", subject, "it has no files", hint)
    if os.path.isdir(folder.root) and os.listdir(folder.root):
        raise ConfigurationError("copy files into", str(folder.root), "it is not empty", "Name another folder.")
    entries = entries_for(index, [0], folders=[[0]])
    files = [entry for entry in entries if entry.kind == "File"]
    size = sum(entry.size for entry in files)
    folder.open()
    incoming = IncomingFolder(folder, f"incoming-{identifier}", entries)
    try:
        incoming.prepare()
        meter = TransferMeter()
        wants = incoming.wants(files)
        if wants:
            Files(run.store, commit.path, manifest, settings=settings).read(wants, progress=meter)
        incoming.finish()
    except BaseException:
        incoming.discard()
        raise
    finally:
        remove(folder.root / WORK_FOLDER)
        with suppress(OSError):
            # If nothing was copied.
            os.rmdir(folder.root)
    return FetchedFiles(identifier, commit.step, len(files), size)
