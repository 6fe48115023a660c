"""Which snapshots stay and which go: one pure function, read by the operator and by anybody who wants to preview it.

Order of precedence, highest first:

1. No verified snapshot on the lineage: nothing is retired at all.
2. Floors, never retired: the newest verified snapshot, the newest of all, held ones, the one in use, the ``keepLast``
   newest good ones. "Good" means that no evidence was found against it and no verified snapshot replaces it.
3. ``disposition: Retire``, set by a user.
4. Limits: ``maxAge``, ``maxTotalSize`` (counted from the newest on).
5. Keep rules, kept if any rule says so: ``keepEverySteps`` and ``keepEvery`` (the oldest of each interval, which stays
   the same as time goes on), ``keepBest``.
6. Superseded snapshots (of a branch that was rolled back) go once the new branch has its ``keepLast``.

Snapshots that are already retired are judged too: one that the policy now wants back is reinstated.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from checkpoint_sidecar.core.lineage import in_use, lineage, superseded
from checkpoint_sidecar.core.policy import KeepBest, RetentionPolicy
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState

Reasons = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy wants, by snapshot id; every live or retired snapshot is in exactly one of the two."""

    keep: Mapping[str, tuple[str, ...]]
    retire: Mapping[str, tuple[str, ...]]


def judge(run: Run, *, now: dt.datetime) -> Verdict:
    """Apply the policy in the log.

    Args:
        now: The *store's* clock, like every time inside ``run``.
    """
    held = (SnapshotState.LIVE, SnapshotState.RETIRED)
    chain = [s for s in lineage(run) if s.state in held]
    branches = list(superseded(run))
    everything = [*chain, *branches]
    policy = run.policy.retention
    if policy is None:
        return _keep_all(everything, "NoRetention")
    if not any(s.live and s.proven for s in chain):
        return _keep_all(everything, "NothingVerified")

    replaced = {s.commit.replaces for s in chain if s.live and s.proven and s.commit.replaces}
    good = [s for s in chain if s.failures == 0 and s.id not in replaced]
    keep: Reasons = {}
    _floors(keep, run, good, everything, policy)
    retire: Reasons = {}
    for snapshot in everything:
        if snapshot.disposition == "Retire":
            retire.setdefault(snapshot.id, []).append("Disposition")
    _limits(retire, chain, keep, policy, now)
    if policy.keep_last is not None or policy.keep_every_steps or policy.keep_every_seconds or policy.keep_best:
        _rules(keep, good, policy, already=retire)
    else:
        _mark(keep, [s for s in good if s.id not in retire], "NoKeepRule")

    enough = sum(s.live for s in good) >= (policy.keep_last or 1)
    for snapshot in branches:
        if not enough and snapshot.id not in retire:
            _mark(keep, [snapshot], "BranchTooYoung")
        elif snapshot.id not in retire:
            retire[snapshot.id] = ["Superseded"]
    for snapshot in chain:
        if snapshot.id not in keep and snapshot.id not in retire:
            retire[snapshot.id] = [_why_unkept(snapshot, replaced)]
    return Verdict(
        {identifier: tuple(reasons) for identifier, reasons in keep.items()},
        {identifier: tuple(reasons) for identifier, reasons in retire.items() if identifier not in keep},
    )


def purge_due(run: Run, *, now: dt.datetime) -> tuple[str, ...]:
    """Snapshots whose data may be deleted, in order of commit.

    Begun purges always go on: after PurgeStarted there is no way back. Others must be retired for the grace period,
    still unwanted, and not in use.
    """
    policy = run.policy.retention
    due = [s.id for s in run.snapshots.values() if s.state is SnapshotState.PURGING]
    if policy is None or policy.dry_run:
        return tuple(due)
    unwanted = judge(run, now=now).retire
    grace = dt.timedelta(seconds=policy.grace_seconds)
    for snapshot in run.snapshots.values():
        if snapshot.state is SnapshotState.RETIRED and snapshot.retired_at is not None:
            waited = now - snapshot.retired_at >= grace
            if waited and snapshot.id in unwanted and snapshot.id != in_use(run):
                due.append(snapshot.id)
    return tuple(due)


def _keep_all(snapshots: Iterable[Snapshot], reason: str) -> Verdict:
    return Verdict({s.id: (reason,) for s in snapshots}, {})


def _mark(reasons: Reasons, snapshots: Iterable[Snapshot], reason: str) -> None:
    for snapshot in snapshots:
        reasons.setdefault(snapshot.id, []).append(reason)


def _floors(keep: Reasons, run: Run, good: list[Snapshot], everything: list[Snapshot], policy: RetentionPolicy) -> None:
    live = [s for s in good if s.live]
    _mark(keep, [s for s in everything if s.id == in_use(run)], "InUse")
    _mark(keep, [s for s in everything if s.disposition == "Hold"], "Hold")
    _mark(keep, live[:1], "Newest")
    # The newest verified one counts even if it is already replaced: its replacement may not be verified yet.
    _mark(keep, [s for s in lineage(run) if s.live and s.proven][:1], "NewestVerified")
    last = policy.keep_last or 0
    # Counted over live ones as well: a retired one the policy wants back is not a candidate until it is reinstated.
    wanted = {s.id for s in (*live[:last], *good[:last])}
    _mark(keep, [s for s in good if s.id in wanted], "KeepLast")


def _limits(retire: Reasons, chain: list[Snapshot], keep: Reasons, policy: RetentionPolicy, now: dt.datetime) -> None:
    total = 0
    for snapshot in chain:
        total += snapshot.commit.bytes
        if snapshot.id in keep:
            continue
        if policy.max_age_seconds is not None:
            age = (now - snapshot.committed_at).total_seconds()
            if age > policy.max_age_seconds:
                _mark(retire, [snapshot], "MaxAge")
        if policy.max_total_bytes is not None and total > policy.max_total_bytes:
            _mark(retire, [snapshot], "MaxTotalSize")
            total -= snapshot.commit.bytes


def _rules(keep: Reasons, good: list[Snapshot], policy: RetentionPolicy, *, already: Reasons) -> None:
    eligible = [s for s in good if s.id not in already]
    if policy.keep_every_steps:
        _mark(keep, _oldest_of_each(eligible, policy.keep_every_steps, by_step=True), "KeepEverySteps")
    if policy.keep_every_seconds:
        _mark(keep, _oldest_of_each(eligible, policy.keep_every_seconds, by_step=False), "KeepEvery")
    for rule in policy.keep_best:
        _mark(keep, _best(eligible, rule), f"KeepBest:{rule.metric}")


def _oldest_of_each(snapshots: list[Snapshot], interval: float, *, by_step: bool) -> list[Snapshot]:
    oldest: dict[int, Snapshot] = {}
    for snapshot in snapshots:  # newest first, so that the last one written to a slot is the oldest
        position = snapshot.step if by_step else snapshot.committed_at.timestamp()
        oldest[int(position // interval)] = snapshot
    return list(oldest.values())


def _best(snapshots: list[Snapshot], rule: KeepBest) -> list[Snapshot]:
    scored = [(value, s) for s in snapshots if (value := metric_value(s, rule.metric)) is not None]
    scored.sort(key=lambda pair: (pair[0] if rule.mode == "Min" else -pair[0], -pair[1].number))
    return [snapshot for _, snapshot in scored[: rule.count]]


def metric_value(snapshot: Snapshot, metric: str) -> Decimal | None:
    """The recorded value, or None when it is absent or not a finite number (NaN is never best)."""
    try:
        value = Decimal(snapshot.commit.metrics.get(metric, "nan"))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _why_unkept(snapshot: Snapshot, replaced: set[str]) -> str:
    if snapshot.failures:
        return "Damaged"
    return "Replaced" if snapshot.id in replaced else "NoRuleKeepsIt"
