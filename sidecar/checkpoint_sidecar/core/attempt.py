"""Computes the entries that the library may append, from the current log.

Each function takes the current ``Run`` and returns the *whole* entry, raises, or returns None for "nothing to write".
After a lost race for a number it is called again with the new state, so that the attempt number, the candidate and the
overwrite check never come from an outdated state.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from checkpoint_sidecar.core.commits import shares_of
from checkpoint_sidecar.core.errors import (
    CheckpointExistsError,
    FencedError,
    LogMissingError,
    PrefixClaimedError,
    RestoreError,
    RestoreInterrupted,
    SharedFilesLostError,
)
from checkpoint_sidecar.core.lineage import RestorePlan, restore_plan
from checkpoint_sidecar.core.log import (
    MAX_PODS,
    AttemptStarted,
    Owner,
    PodIdentity,
    RestoreFinished,
    RestoreStarted,
    RunClaimed,
    SaveFailed,
    SavesIdentified,
    SnapshotCommitted,
    SnapshotReinstated,
    Trigger,
)
from checkpoint_sidecar.core.overwrite import base_of, existing_save, may_begin_anew
from checkpoint_sidecar.core.policy import OverwritePolicy
from checkpoint_sidecar.core.run import Attempt, Run, Snapshot
from checkpoint_sidecar.core.sharing import damage_among, why_not_shared

LOG_MISSING_HINT = (
    "Restore the objects of _log/ from the bucket's versions or a backup. To start over on purpose, set "
    "spec.restore.onMissing: StartFresh on the Checkpoint, use another prefix, or delete what is left under this one."
)
_MAX_TRACES = 5

AUTOMATIC: frozenset[Trigger] = frozenset({"Schedule", "Request", "Termination", "Eviction", "Final"})


def check_log(run: Run, *, url: str, floor: int = 0, traces: Sequence[str] = ()) -> None:
    """Raise an error unless the log may be that of a new run, or is at least as long as it was before.

    Args:
        floor: Number of an entry that was seen in this log before; 0 if none was.
        traces: Traces of a run that has no log, or of attempts that are not in it, see ``core.belongings``; only
            searched for if the log has no commits.

    Raises:
        LogMissingError: The prefix had a run whose log is missing or was truncated.
    """
    if run.policy.restore.on_missing == "StartFresh":
        return
    there = f"the run log ends with entry {run.head}" if run.head else "there is no run log"
    if run.head < floor:
        cause = f"{there}, but entry {floor} was seen"
    elif traces:
        more = f" and {len(traces) - _MAX_TRACES} more" if len(traces) > _MAX_TRACES else ""
        cause = f"{there}, but the prefix holds data of a run: {', '.join(traces[:_MAX_TRACES])}{more}"
    else:
        return
    raise LogMissingError("start the run", url, cause, LOG_MISSING_HINT)


def places(pods: Collection[PodIdentity]) -> int:
    """Return the number of pods, or of hosts for processes outside Kubernetes."""
    return len({pod.name.partition(":")[0] for pod in pods})


def claim(run: Run, owner: Owner, *, url: str) -> RunClaimed | None:
    """Return the run's first entry, or None if the prefix is already ours.

    Raises:
        PrefixClaimedError: It belongs to another owner.
    """
    if run.free:
        return RunClaimed(owner)
    check_owner(run, owner, url=url)
    return None


def identify(run: Run) -> SavesIdentified | None:
    """Return the entry that must precede saves whose folders carry the run's identity, or None if it exists."""
    return None if run.identified else SavesIdentified(run.short_identity)


def check_owner(run: Run, owner: Owner, *, url: str) -> None:
    """Raise an error unless the prefix belongs to ``owner``.

    Raises:
        PrefixClaimedError: It belongs to another owner.
    """
    if run.owner == owner:
        return
    cause = f"it is claimed by {run.owner}, and this is {owner}"
    hint = f"Choose another prefix, or take this one over with spec.storage.takeOverFrom: {run.owner}."
    if run.owner is not None and run.owner.is_deleted:
        cause = "its run was deleted, but not all of its data is removed yet"
        hint = "Wait until its data is removed, or choose another prefix."
    raise PrefixClaimedError("use the prefix", url, cause, hint)


def start(run: Run, *, world_size: int, pods: tuple[PodIdentity, ...]) -> AttemptStarted:
    """Return the next attempt, with the snapshot that it will try first."""
    plan = restore_plan(run, run.pending)
    return AttemptStarted(
        attempt=run.highest_attempt + 1,
        world_size=world_size,
        restore_request=plan.request,
        candidate=plan.candidates[0] if plan.candidates else "",
        pods=pods[:MAX_PODS],
    )


def start_over(run: Run, *, world_size: int) -> AttemptStarted:
    """Return a DCP drop-in directory's next attempt: one save over the newest snapshot, which is not restored."""
    return AttemptStarted(attempt=run.highest_attempt + 1, world_size=world_size, continues=run.newest or "")


def current(run: Run, attempt: int) -> Attempt:
    """Return the attempt's state.

    Raises:
        FencedError: A later attempt started, the run has a new owner, or this attempt was silent for a day.
    """
    if not run.may_commit(attempt):
        cause = f"{run.owner} took over the run, or this attempt was silent for too long"
        if run.highest_attempt > attempt:
            cause = f"attempt {run.highest_attempt} has started since"
        raise FencedError(
            "write to the run log as",
            f"attempt {attempt}",
            cause,
            "Let this process exit.",
        )
    return run.attempts[attempt]


def plan_for(run: Run, attempt: int) -> RestorePlan:
    """Plan what this attempt may restore, by the request that it announced even if there is a newer one.

    Raises:
        FencedError: See ``current``.
        RestoreInterrupted: A newer request replaced its own, and only a new start can serve that.
    """
    request = current(run, attempt).started.restore_request
    if not request:
        return restore_plan(run, None)
    if run.pending is None or run.pending.id != request:
        raise RestoreInterrupted(
            "restore the run in",
            f"attempt {attempt}",
            f"its restore request {request} was withdrawn or replaced while it started",
            "Start again: the next attempt serves the newer request.",
        )
    return restore_plan(run, run.pending)


def announce(run: Run, attempt: int, tried: Collection[str]) -> RestoreStarted | SnapshotReinstated | None:
    """Announce the next candidate, or return None after the last. Retired ones come last; this reinstates them.

    Raises:
        FencedError, RestoreInterrupted: See ``plan_for``.
    """
    plan = plan_for(run, attempt)
    for candidate in plan.candidates:
        if candidate not in tried:
            return RestoreStarted(attempt, candidate)
    for candidate in plan.last_resort:
        if candidate not in tried:
            return SnapshotReinstated(candidate, attempt)
    return None


def finish_restore(run: Run, outcome: RestoreFinished) -> RestoreFinished:
    """Return the entry with the outcome of one candidate, if the attempt may still write.

    Raises:
        FencedError: See ``current``.
    """
    current(run, outcome.attempt)
    return outcome


@dataclass(frozen=True, slots=True)
class Admitted:
    """Result for a save that may continue. Its commit names ``replaces``, which is empty for a new step."""

    replaces: str


@dataclass(frozen=True, slots=True)
class AlreadySaved:
    """Result for a save that is unnecessary, because this snapshot exists."""

    snapshot: Snapshot


def admit_save(
    run: Run, attempt: int, step: int, *, trigger: Trigger, overwrite: OverwritePolicy
) -> Admitted | AlreadySaved:
    """Apply the overwrite policy: before the upload, to fail early, and again in ``commit``, which decides.

    Args:
        overwrite: The caller's policy; a policy in the log takes precedence.

    Raises:
        CheckpointExistsError: The step is saved and the policy is Never. Automatic saves of a saved step are no-ops
            under every policy: a SIGTERM right after a scheduled save is not a user error.
        RestoreError: The attempt would begin a new lineage without a request to do so.
        FencedError: See ``current``.
    """
    state = current(run, attempt)
    base = base_of(state)
    if not base and not may_begin_anew(run, state):
        raise RestoreError(
            f"save step {step} in",
            f"attempt {attempt}",
            "it restored nothing although the run has snapshots, which this save would orphan",
            "Restore before the first save, or ask for a fresh start with restore.mode: None.",
        )
    existing = existing_save(run, base, step)
    if existing is None:
        return Admitted("")
    policy = run.policy.overwrite if run.configured else overwrite
    if trigger in AUTOMATIC or policy == "Skip":
        return AlreadySaved(existing)
    if policy == "Replace":
        return Admitted(existing.id)
    raise CheckpointExistsError(
        f"save step {step} to",
        existing.commit.path,
        f"Checkpoint already exists: snapshot {existing.id} and the overwrite policy is Never",
        "Save another step, or set overwritePolicy to Skip or Replace.",
    )


def commit(run: Run, draft: SnapshotCommitted, *, overwrite: OverwritePolicy) -> SnapshotCommitted | None:
    """Return the commit of an uploaded save, with its place in the lineage.

    Args:
        draft: ``parent``, ``replaces`` and ``restore_request`` are ignored and computed here.

    Returns:
        None if the step was saved in the meantime and the policy keeps that snapshot. The upload is then an orphan,
        which this attempt may delete.

    Raises:
        SharedFilesLostError: A file that it shares was purged, or there is evidence against it.
        CheckpointExistsError, RestoreError, FencedError: See ``admit_save``.
    """
    attempt = current(run, draft.attempt)
    admission = admit_save(run, draft.attempt, draft.step, trigger=draft.trigger, overwrite=overwrite)
    if isinstance(admission, AlreadySaved):
        return None
    shares = shares_of(draft)
    cause = why_not_shared(run, shares)
    if not cause and (damaged := damage_among(run, shares)):
        cause = f"{damaged} was found damaged"
    if cause:
        hint = "The next save stores the files again."
        raise SharedFilesLostError("share files with", draft.path, cause, hint)
    return msgspec.structs.replace(
        draft,
        parent=base_of(attempt),
        replaces=admission.replaces,
        restore_request=attempt.started.restore_request,
    )


def save_failed(run: Run, report: SaveFailed, *, after: str | None) -> SaveFailed | None:
    """Return the report of failed saves, or None if there is one already or a commit followed them.

    Args:
        after: The attempt's last commit at the time of the report.
    """
    if not run.may_commit(report.attempt):
        return None
    attempt = run.attempts[report.attempt]
    return report if attempt.save_failure is None and attempt.last_commit == after else None
