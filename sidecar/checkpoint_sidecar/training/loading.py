"""``load``: reads a snapshot into a model for evaluation or inference, without a run of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch.nn import Module

from checkpoint_sidecar.attempt.session import Candidate, candidate_of
from checkpoint_sidecar.core.errors import CheckpointError, IncompatibleSnapshotError, SnapshotNotFoundError
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.core.selectors import find_snapshot
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.manage.addressed import open_addressed
from checkpoint_sidecar.manage.changes import why_gone, why_unreadable
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.training.agreement import Agreement, most_telling
from checkpoint_sidecar.training.dcp.restricted import Trust
from checkpoint_sidecar.training.restoring import SnapshotLoading
from checkpoint_sidecar.training.state.application import Optional, TrainingState
from checkpoint_sidecar.training.transfers import Transfers

MODEL = "model"


@dataclass(frozen=True, slots=True)
class LoadedSnapshot:
    """The snapshot that was loaded.

    Attributes:
        snapshot: Its id.
        metrics: Its metrics as decimal strings, as they were committed.
        seconds: Duration of the load.
        missing: With ``strict=False``, names that only the objects have, which keep their values; the first ones.
        unused: Names that only the snapshot has; likewise.
    """

    snapshot: str
    step: int
    metrics: Mapping[str, str]
    seconds: float
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def load(
    url: str | StoreSettings | StoredRun,
    into: Module | MutableMapping[str, Any],
    *,
    part: str = MODEL,
    selector: str | int = "",
    verify: VerifyLevel | None = None,
    trust: Trust = "safe",
    strict: bool = True,
    filesystem: Any = None,
    storage_options: Mapping[str, Any] | None = None,
) -> LoadedSnapshot:
    """Load a snapshot into a model, to evaluate it or to serve it.

    >>> load("s3://training/llama-7b@best", into=model)

    The snapshot may come from any number of ranks and any sharding; each rank reads what its parameters need.
    Where the run has a retention policy, rank 0 announces in the log what is read, so that it is not deleted meanwhile;
    nothing else is written. Without the right to write, the load runs unannounced.

    Collective if a process group exists: every rank calls it at the same point with the same arguments, and an error of
    one rank is raised on all. ``requires_grad`` stays as it is.

    Args:
        url: ``<url>``, ``<url>@latest``, ``<url>@best``, ``<url>@<step>`` or ``<url>@<id>``; or settings, or a run.
        into: A module, or objects by name as ``Checkpointer`` takes them.
        part: Name of the module in the state that was saved; with objects by name, their names count.
        selector: The snapshot, where ``url`` does not name it.
        verify: How thoroughly to check the bytes that are read; by default as the run's policy says.
        trust: ``full`` allows the snapshot to execute any pickled class; use it for your own snapshots only.
        strict: Refuse if the snapshot lacks a name that an object has, or has one that the object lacks. Objects that
            only the snapshot has never matter.
        filesystem: See ``open_run``.
        storage_options: See ``open_run``.

    Raises:
        RunNotFoundError, SnapshotNotFoundError, AmbiguousSelectorError: Nothing, or not one thing, fits the address; or
            the snapshot was deleted meanwhile.
        IncompatibleSnapshotError: The snapshot does not fit the objects, which are unchanged.
        CorruptSnapshotError: Stored bytes are not those that were committed. The objects may be partly loaded.
        UntrustedSnapshotError: It holds pickled classes that ``trust="safe"`` refuses.
        ConfigurationError: The URL or an object cannot work.
        StoreError, LogError: The bucket cannot be read.
    """
    began = time.monotonic()
    agreement, announcing = Agreement.among_all(), ExitStack()
    try:
        failure: Exception | None = None
        try:
            run, selector = open_addressed(url, selector, filesystem=filesystem, storage_options=storage_options)
            objects = {part: into} if isinstance(into, Module) else into
            state = TrainingState(objects, rank=agreement.rank, trust=trust, thaw=False)
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - raised below, on all ranks
            failure = portable(error, operation="load a snapshot into", subject="the objects")
        agreement.raise_any(failure)
        # On rank 0 alone, for all of them.
        candidate, metrics = agreement.from_rank_0(lambda: _chosen(run, selector, verify, announcing))
        progress, compared = TransferMeter(), ComparedBytes(candidate.manifest)
        with Transfers(show=agreement.leads).under_way("restore", candidate.step, progress):
            loading = SnapshotLoading(state, candidate, run.store, agreement, trust, strict, progress, compared)
            errors = loading.run()
        if found := most_telling(errors):
            raise agreement.from_rank_0(lambda: _explained(found, run, candidate, loading, objects))
        missing, unused = loading.leftovers.not_restored, tuple(sorted(loading.leftovers.unused))
        return LoadedSnapshot(candidate.snapshot, candidate.step, metrics, time.monotonic() - began, missing, unused)
    finally:
        announcing.close()
        agreement.close()


def _chosen(
    run: StoredRun, selector: str | int, verify: VerifyLevel | None, announcing: ExitStack
) -> tuple[Candidate, dict[str, str]]:
    identifier = find_snapshot(run.refresh(), selector, url=run.url).id
    announcing.enter_context(run.reading(identifier))
    state = run.state
    snapshot = state.snapshots[identifier]
    if cause := why_unreadable(state, snapshot.id):
        raise _gone(run, snapshot.id, cause)
    level = verify or state.policy.restore.verify
    try:
        return candidate_of(run.store, snapshot, verify=level), dict(snapshot.commit.metrics)
    except CheckpointError as error:
        raise _deleted(run, snapshot.id) or error from None


def _explained(
    error: Exception, run: StoredRun, candidate: Candidate, loading: SnapshotLoading, objects: Mapping[str, Any]
) -> Exception:
    """Return the error to raise: a snapshot may have been deleted meanwhile, or have other objects than were asked."""
    needed = {name for name, value in objects.items() if not isinstance(value, Optional)}
    absent = sorted(needed - loading.names)
    if isinstance(error, IncompatibleSnapshotError) and candidate.index is not None and not loading.names:
        return IncompatibleSnapshotError(
            "load",
            f"{run.url}@{candidate.snapshot}",
            "it has the files of a trainer's folder and no objects",
            "Copy the files into a folder with fetch_files, and load them as the trainer does.",
        )
    if isinstance(error, IncompatibleSnapshotError) and absent and loading.names:
        return IncompatibleSnapshotError(
            "load",
            f"{run.url}@{candidate.snapshot}",
            f"it has no {', '.join(absent)}",
            f"It has {', '.join(sorted(loading.names))}: name one with part=...",
        )
    return _deleted(run, candidate.snapshot) or error


def _deleted(run: StoredRun, snapshot: str) -> SnapshotNotFoundError | None:
    cause = why_gone(run.refresh, snapshot)
    return _gone(run, snapshot, cause) if cause else None


def _gone(run: StoredRun, snapshot: str, cause: str) -> SnapshotNotFoundError:
    return SnapshotNotFoundError(
        "load",
        f"{run.url}@{snapshot}",
        cause,
        "Choose another snapshot. Retention waits for readers that may write below _log/, and keeps held snapshots.",
    )
