"""Restoring on all ranks, or on none."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load

from checkpoint_sidecar.engine.compared import Compared
from checkpoint_sidecar.engine.progress import Progress
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.training.agreement import Agreement
from checkpoint_sidecar.training.failures import raising_ours
from checkpoint_sidecar.training.planner import StrictLoadPlanner
from checkpoint_sidecar.training.reader import SnapshotReader
from checkpoint_sidecar.training.restricted import Trust
from checkpoint_sidecar.training.session import Candidate, Session
from checkpoint_sidecar.training.state import TrainingState
from checkpoint_sidecar.training.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Restored:
    """What training goes on from.

    Attributes:
        skipped: Snapshots that were tried before and proved damaged.
    """

    snapshot: str
    step: int
    seconds: float
    skipped: tuple[str, ...] = ()


class _Planner(StrictLoadPlanner):
    """Leaves out what a snapshot of fewer ranks cannot have.

    Args:
        optional: ``(name, key)`` of such values in the state dict.
    """

    def __init__(self, optional: Iterable[tuple[str, str]]) -> None:
        super().__init__()
        self._optional = tuple(optional)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        stored = metadata.state_dict_metadata if metadata else {}
        for name, key in self._optional:
            if f"{name}.{key}" not in stored:
                del state_dict[name][key]
        super().set_up_planner(state_dict, metadata, is_coordinator)


def restore(
    state: TrainingState,
    *,
    session: Session | None,
    store: Store,
    agreement: Agreement,
    trust: Trust,
    transfers: Transfers,
) -> Restored | None:
    """Load the newest snapshot that proves good, the same one on every rank. None means a fresh start.

    Args:
        session: On rank 0.
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
        progress, compared = Progress(), Compared(candidate.manifest)
        with transfers.under_way("restore", candidate.step, progress):
            outcomes = _load(state, candidate, store, agreement, trust, progress, compared)
        errors = [error for error in outcomes if error is not None]
        if not errors:
            agreement.combine(compared.flags)
        seconds = time.monotonic() - began
        skipped = agreement.from_rank_0(partial(_record, session, candidate, errors, seconds, compared))
        if not errors:
            return Restored(candidate.snapshot, candidate.step, seconds, skipped)


def _load(
    state: TrainingState,
    candidate: Candidate,
    store: Store,
    agreement: Agreement,
    trust: Trust,
    progress: Progress,
    compared: Compared,
) -> list[Exception | None]:
    """Every rank's error or None, by rank, on every rank."""
    # Ranks must not enter DCP's collectives unless all of them do.
    error: Exception | None = None
    try:
        template = state.capture()
        reader = SnapshotReader(
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
    except Exception as caught:  # noqa: BLE001 - reported by rank 0, raised on all
        error = caught
    errors = agreement.gather_errors(error)
    if any(errors):
        return errors
    try:
        with raising_ours(f"restore step {candidate.step}"):
            load(template, storage_reader=reader, planner=_Planner(state.optional), process_group=agreement.group)
        state.apply(template)
    except Exception as caught:  # noqa: BLE001 - reported by rank 0, raised on all
        error = caught
    return agreement.gather_errors(error)


def _record(
    session: Session | None, candidate: Candidate, errors: list[Exception], seconds: float, compared: Compared
) -> tuple[str, ...]:
    assert session is not None  # runs on rank 0
    if errors:
        # DCP raises the same error on every rank; they differ only where a load could not begin, or not be applied.
        session.failed(candidate.snapshot, errors[0])
    else:
        session.restored(candidate, seconds=seconds, compared=compared)
    return tuple(session.skipped)
