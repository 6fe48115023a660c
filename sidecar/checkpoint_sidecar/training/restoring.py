"""Restores a snapshot on all ranks, or on none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from torch.distributed.checkpoint.state_dict_loader import load

from checkpoint_sidecar.attempt.session import AttemptSession, Candidate
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.unchanged import UnchangedFiles
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.agreement import Agreement
from checkpoint_sidecar.training.dcp.errors import raising_ours
from checkpoint_sidecar.training.dcp.load_planner import ItemPlanner
from checkpoint_sidecar.training.dcp.reader import SnapshotReader
from checkpoint_sidecar.training.dcp.restricted import Trust
from checkpoint_sidecar.training.folders import FolderLoading, RunFolder
from checkpoint_sidecar.training.state.application import TrainingState
from checkpoint_sidecar.training.state.contents import Contents
from checkpoint_sidecar.training.state.leftovers import Leftovers, refusal
from checkpoint_sidecar.training.transfers import Transfers

FILES = "files of a folder"
"""How reports name the files of a trainer's folder."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The snapshot from which training continues.

    Attributes:
        seconds: Duration of the restore.
        skipped: Snapshots that were tried before and proved damaged.
        missing: Names that only the state has, which keep their present values; the first ones of many.
        unused: Names that only the snapshot has; likewise.
        url: The other run in which the snapshot is, at a warm start; else empty.
        part: The only object that was loaded, at a warm start with one; ``step`` is 0 then, and ``missing`` names the
            objects that start fresh.
    """

    snapshot: str
    step: int
    seconds: float
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    url: str = ""
    part: str = ""


def restore(
    state: TrainingState,
    *,
    session: AttemptSession | None,
    store: Store,
    agreement: Agreement,
    trust: Trust,
    strict: bool,
    transfers: Transfers,
    folder: RunFolder | None = None,
    unchanged: UnchangedFiles | None = None,
) -> Restored | None:
    """Load the newest snapshot that proves good, the same one on every rank. None means a fresh start.

    Args:
        session: The attempt's session on rank 0, None on the others.
        strict: Whether names that only the snapshot or only the state has are fatal; see ``leftovers``.
        transfers: Shows the running restore.
        folder: A trainer's folder, whose files are restored too.
        unchanged: Learns what was restored.

    Raises:
        RestoreError: Every candidate proved damaged, or there is none and the policy forbids a fresh start.
        RestoreInterrupted: An error that is not damage stopped it; the next start tries the same snapshot.
        IncompatibleSnapshotError: The snapshot is incompatible; the state is unchanged.
        FencedError: A later attempt started.
    """
    while True:
        candidate = agreement.from_rank_0(lambda: session.next_candidate() if session else None)
        if candidate is None:
            return None
        began = time.monotonic()
        progress, compared = TransferMeter(), ComparedBytes(candidate.manifest)
        with transfers.under_way("restore", candidate.step, progress):
            loading = SnapshotLoading(state, candidate, store, agreement, trust, strict, progress, compared, folder)
            errors = loading.run()
        if not errors:
            agreement.combine(compared.flags)
        seconds = time.monotonic() - began
        skipped = agreement.from_rank_0(
            partial(_record, session, candidate, errors, loading.leftovers, seconds, compared)
        )
        if not errors:
            if unchanged is not None and candidate.verify == "Checksums":
                unchanged.restored(candidate.path, candidate.manifest)
            missing, unused = loading.leftovers.not_restored, loading.leftovers.not_used
            return Restored(candidate.snapshot, candidate.step, seconds, skipped, missing, unused)


class SnapshotLoading:
    """Loads one candidate in phases, which all ranks begin together. Writes nothing into the store.

    Attributes:
        names: Names of the objects in the snapshot, once it was opened.
        leftovers: The names that did not match, the same on every rank once ``run`` has returned no errors.
    """

    def __init__(
        self,
        state: TrainingState,
        candidate: Candidate,
        store: Store,
        agreement: Agreement,
        trust: Trust,
        strict: bool,
        progress: TransferMeter,
        compared: ComparedBytes,
        folder: RunFolder | None = None,
    ) -> None:
        self._state = state
        self._files: FolderLoading | None = None
        self._has_files = candidate.index is not None
        self._wants_files = folder is not None
        if folder is not None and candidate.index is not None:
            self._files = FolderLoading(folder, candidate, candidate.index, store, progress, compared)
        self._agreement = agreement
        self._strict = strict
        self._reader = SnapshotReader(
            store,
            candidate.path,
            candidate.manifest,
            verify=candidate.verify,
            trust=trust,
            progress=progress,
            metadata=candidate.metadata,
            # Reading from a local disk is faster than passing bytes on.
            sharing=None if store.url.startswith("file:") else agreement.group,
            compared=compared,
        )
        self._subject = f"step {candidate.step} from {store.url}/{candidate.path}"
        self._operation = f"restore step {candidate.step}"
        self.leftovers = Leftovers()
        self.names: frozenset[str] = frozenset()

    def run(self) -> list[Exception]:
        """Load the snapshot. Returns the errors of all ranks, the same on every rank."""
        # Ranks must not enter the collectives of a phase unless all of them do.
        phases = [self._open, self._describe, self._allocate, self._read]
        if self._files is not None:
            # The state is changed when all files are there, and they are moved into place last.
            phases[3:3] = [self._files.prepare, self._files.read]
            phases.append(self._files.place)
        for phase in phases:
            error: Exception | None = None
            try:
                phase()
            except INTERRUPTS:
                raise
            except BaseException as caught:  # noqa: BLE001 - rank 0 records it, and all ranks raise it
                error = portable(caught, operation="restore on", subject=f"rank {self._agreement.rank}")
            errors = [each for each in self._agreement.gather_errors(error) if each is not None]
            if errors:
                self.leftovers = Leftovers()
                if self._files is not None:
                    self._files.discard()
                return errors
        return []

    def _open(self) -> None:
        """Read the snapshot's metadata."""
        with raising_ours(self._operation):
            self._contents = Contents.of(self._reader.open())
        self.names = frozenset(self._contents.names)

    def _describe(self) -> None:
        """Let rank 0 read, for all ranks, the objects that must be known before anything is allocated."""
        names = {name for names in self._agreement.gather(self._state.names) for name in names}
        wanted = self._contents.shared_items(names)
        self._contents.values.update(self._agreement.from_rank_0(partial(self._reader.load_objects, wanted)))

    def _allocate(self) -> None:
        """Choose a destination for every item, and check that all are compatible."""
        error: Exception | None = None
        own = Leftovers()
        try:
            self._destinations = self._state.destinations(self._contents)
            own = self._destinations.leftovers
            if self._has_files and not self._wants_files:
                own.gone.add(FILES)
            if self._wants_files and not self._has_files:
                own.missing.add(FILES)
        except Exception as caught:  # noqa: BLE001 - the other ranks wait in the gather below
            error = caught
        together = self._agreement.gather(own)
        if error is not None:
            raise error
        self.leftovers = Leftovers.of_all(together)
        if refused := refusal(self.leftovers, self._subject, strict=self._strict):
            raise refused

    def _read(self) -> None:
        """Load all items and apply them to the objects."""
        items = self._destinations.items
        planner = ItemPlanner(items)
        with raising_ours(self._operation):
            load(items, storage_reader=self._reader, planner=planner, process_group=self._agreement.group)
        self._contents.values.update(self._destinations.loaded(planner.loaded))
        self._state.apply(self._contents)


def _record(
    session: AttemptSession | None,
    candidate: Candidate,
    errors: list[Exception],
    leftovers: Leftovers,
    seconds: float,
    compared: ComparedBytes,
) -> tuple[str, ...]:
    assert session is not None  # runs on rank 0
    if errors:
        # DCP raises the same error on every rank; errors differ only if a load could not begin or not be applied.
        session.failed(candidate.snapshot, errors[0])
    else:
        missing, unused = leftovers.not_restored, leftovers.not_used
        session.restored(candidate, seconds=seconds, compared=compared, missing=missing, unused=unused)
    return tuple(session.skipped)
