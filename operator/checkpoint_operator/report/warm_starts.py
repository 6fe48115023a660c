"""Where a run begins or began, for its status. Pure."""

from __future__ import annotations

import math

from checkpoint_operator.decide.warm_starts import judge_warm_start, request_of
from checkpoint_operator.model.observed import Observed
from checkpoint_operator.model.timestamps import timestamp
from checkpoint_sidecar.core import api
from checkpoint_sidecar.core.api_sources import StartSource, WarmStartState, WarmStartStatus
from checkpoint_sidecar.core.log import WarmStartChosen, WarmStartFinished
from checkpoint_sidecar.core.run import Attempt, Run, SnapshotState


def warm_start_status(observed: Observed, run: Run) -> WarmStartStatus | None:
    """Return where the run begins; None if it begins at step 0, or if that is not known.

    Pods are not injected before it is known, see the injection policy of the chart.
    """
    spec = observed.checkpoint.spec
    start = spec.restore.start_from if spec is not None else None
    request = request_of(observed.checkpoint)
    if run.ever_committed:
        found = _begun_with(run)
        if found is not None:
            return _status("Used", found, attempt=found.attempt)
        return WarmStartStatus("NotUsed") if start is not None else None
    if request is None:
        return _at_url(run, start)
    verdict = judge_warm_start(observed)
    # Only what is in the log counts: an append may have failed.
    if verdict is None or verdict.chosen is None or verdict.chosen != run.warm_start:
        return None
    access = verdict.access
    return _status(
        "Pending",
        verdict.chosen,
        checkpoint=str(request.key),
        endpoint=access.storage.endpoint or None if access else None,
        region=access.storage.region or None if access else None,
        addressing_style=access.storage.addressing_style if access else None,
        credentials_secret=api.LocalReference(access.secret) if access and access.secret else None,
    )


def begun(attempt: Attempt, outcome: WarmStartFinished) -> api.LastRestore:
    """Return the restore of an attempt that began at a snapshot of another run."""
    return api.LastRestore(
        attempt=attempt.number,
        reason="WarmStart",
        time=timestamp(attempt.started_at),
        step=outcome.step,
        snapshot=outcome.snapshot or None,
        seconds=math.ceil(outcome.seconds),
    )


def begun_at(attempt: Attempt) -> int | None:
    """Return the step from which an attempt continued another run; None if it did not, or took only a part of it."""
    outcome = attempt.warm_start
    return outcome.step if outcome is not None and outcome.restored and not outcome.part else None


def _at_url(run: Run, start: StartSource | None) -> WarmStartStatus | None:
    if run.warm_start is not None:
        return _status("Pending", run.warm_start)
    if start is None or not start.url:
        return None
    return WarmStartStatus("Pending", part=start.part or None)


def _begun_with(run: Run) -> WarmStartFinished | None:
    """Return what the attempt of the first commit had loaded."""
    commits = (snapshot for snapshot in run.snapshots.values() if snapshot.state is not SnapshotState.REJECTED)
    first = next(commits, None)
    attempt = run.attempts.get(first.commit.attempt) if first is not None else None
    outcome = attempt.warm_start if attempt is not None else None
    return outcome if outcome is not None and outcome.restored else None


def _status(state: WarmStartState, found: WarmStartChosen | WarmStartFinished, **more: object) -> WarmStartStatus:
    part, snapshot = found.part or None, found.snapshot or None
    return WarmStartStatus(state, found.url, snapshot, found.step, part, **more)  # type: ignore[arg-type]
