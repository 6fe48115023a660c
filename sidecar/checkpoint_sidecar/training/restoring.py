"""Restoring on all ranks, or on none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from torch.distributed.checkpoint.state_dict_loader import load

from checkpoint_sidecar.attempt.session import AttemptSession, Candidate
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.agreement import Agreement
from checkpoint_sidecar.training.dcp.errors import raising_ours
from checkpoint_sidecar.training.dcp.load_planner import ItemPlanner
from checkpoint_sidecar.training.dcp.reader import SnapshotReader
from checkpoint_sidecar.training.dcp.restricted import Trust
from checkpoint_sidecar.training.state.application import TrainingState
from checkpoint_sidecar.training.state.contents import Contents
from checkpoint_sidecar.training.state.leftovers import Leftovers, refusal
from checkpoint_sidecar.training.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Restored:
    """What training goes on from.

    Attributes:
        skipped: Snapshots that were tried before and proved damaged.
        missing: Names that the state has and the snapshot lacks, which keep the state they had; of many the first.
        unused: Names that the snapshot has and the state does not take; likewise.
    """

    snapshot: str
    step: int
    seconds: float
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def restore(
    state: TrainingState,
    *,
    session: AttemptSession | None,
    store: Store,
    agreement: Agreement,
    trust: Trust,
    strict: bool,
    transfers: Transfers,
) -> Restored | None:
    """Load the newest snapshot that proves good, the same one on every rank. None means a fresh start.

    Args:
        session: On rank 0.
        strict: Whether names that only the snapshot or only the state has are fatal; see ``leftovers``.
        transfers: Where the running restore is to be seen.

    Raises:
        RestoreError: Every candidate proved damaged, or there is none and the policy forbids a fresh start.
        RestoreInterrupted: Something else than damage stopped it; the next start tries the same snapshot.
        IncompatibleSnapshotError: The snapshot does not fit; the state was not touched.
        FencedError: A later attempt started.
    """
    while True:
        candidate = agreement.from_rank_0(lambda: session.next_candidate() if session else None)
        if candidate is None:
            return None
        began = time.monotonic()
        progress, compared = TransferMeter(), ComparedBytes(candidate.manifest)
        with transfers.under_way("restore", candidate.step, progress):
            errors, leftovers = _load(state, candidate, store, agreement, trust, strict, progress, compared)
        if not errors:
            agreement.combine(compared.flags)
        seconds = time.monotonic() - began
        skipped = agreement.from_rank_0(partial(_record, session, candidate, errors, leftovers, seconds, compared))
        if not errors:
            missing, unused = leftovers.not_restored, leftovers.not_used
            return Restored(candidate.snapshot, candidate.step, seconds, skipped, missing, unused)


def _load(
    state: TrainingState,
    candidate: Candidate,
    store: Store,
    agreement: Agreement,
    trust: Trust,
    strict: bool,
    progress: TransferMeter,
    compared: ComparedBytes,
) -> tuple[list[Exception], Leftovers]:
    """The errors of all ranks, and what did not match, the same on every rank."""
    loading = _Loading(state, candidate, store, agreement, trust, strict, progress, compared)
    # Ranks must not enter the collectives of a phase unless all of them do.
    for phase in (loading.open, loading.describe, loading.allocate, loading.read):
        error: Exception | None = None
        try:
            phase()
        except INTERRUPTS:
            raise
        except BaseException as caught:  # noqa: BLE001 - reported by rank 0, raised on all
            error = portable(caught, operation="restore", subject=f"rank {agreement.rank}")
        errors = [each for each in agreement.gather_errors(error) if each is not None]
        if errors:
            return errors, Leftovers()
    return [], loading.leftovers


class _Loading:
    """The phases in which a snapshot is loaded."""

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
    ) -> None:
        self._state = state
        self._candidate = candidate
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
            # What is on a local disk is read faster than it is passed on.
            sharing=None if store.url.startswith("file:") else agreement.group,
            compared=compared,
        )
        self._subject = f"step {candidate.step} from {store.url}/{candidate.path}"
        self._operation = f"restore step {candidate.step}"
        self.leftovers = Leftovers()

    def open(self) -> None:
        """Read what the snapshot says of itself."""
        with raising_ours(self._operation):
            self._contents = Contents.of(self._reader.open())

    def describe(self) -> None:
        """Let rank 0 read, for all, what has to be known before anything is allocated."""
        names = {name for names in self._agreement.gather(self._state.names) for name in names}
        wanted = self._contents.shared_items(names)
        self._contents.values.update(self._agreement.from_rank_0(partial(self._reader.load_objects, wanted)))

    def allocate(self) -> None:
        """Decide where everything goes, and whether it fits."""
        error: Exception | None = None
        own = Leftovers()
        try:
            self._destinations = self._state.destinations(self._contents)
            own = self._destinations.leftovers
        except Exception as caught:  # noqa: BLE001 - the other ranks wait for what does not match here
            error = caught
        together = self._agreement.gather(own)
        if error is not None:
            raise error
        self.leftovers = Leftovers.of_all(together)
        if refused := refusal(self.leftovers, self._subject, strict=self._strict):
            raise refused

    def read(self) -> None:
        """Load everything and put it into the objects."""
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
        # DCP raises the same error on every rank; they differ only where a load could not begin, or not be applied.
        session.failed(candidate.snapshot, errors[0])
    else:
        missing, unused = leftovers.not_restored, leftovers.not_used
        session.restored(candidate, seconds=seconds, compared=compared, missing=missing, unused=unused)
    return tuple(session.skipped)
