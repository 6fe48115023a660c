"""Which snapshots stay and which go: one pure function, read by the operator and by anybody who wants to preview it.

Order of precedence, highest first:

1. No verified snapshot on the lineage: nothing is retired at all.
2. Floors, never retired: the one in use, the target of a pending rollback, held ones, the newest, the newest verified
   and anything under suspicion that is newer than that, the ``keepLast`` newest; where snapshots are read back, the
   newest whose checksums were compared, and the one that is being read.
3. ``disposition: Retire``, set by a user.
4. ``maxAge``.
5. Keep rules, kept if any rule says so: ``keepEverySteps`` and ``keepEvery`` (the oldest of each interval, which stays
   the same as time goes on), ``keepBest``. They choose among all, old ones too: whoever allows a greater age loses
   nothing that was kept.
6. ``maxTotalSize``, a limit on what the rules keep: floors first, then the newest that fit. After it the quota of the
   namespace, where the caller has one.
7. Superseded snapshots (of a branch that was rolled back) and quarantined ones go once the lineage has its
   ``keepLast``.

Only snapshots in good standing count for ``keepLast`` and compete under the keep rules: those that no evidence was
found against and that no later save replaces. A replaced one stays beside its replacement until that is verified.

A suspect (some evidence, not enough for quarantine) is looked at again, and until then nothing depends on the answer:
what would stay if it were good stays, and so does what would stay if it were bad.

Snapshots that are already retired are judged too: one that the policy now wants back is reinstated.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from checkpoint_sidecar.core.lineage import in_use, lineage, quarantined, rollback_target, superseded, walk
from checkpoint_sidecar.core.policy import KeepBest, RetentionPolicy
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState

Reasons = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class RetentionVerdict:
    """What the policy wants, by snapshot id; every live or retired snapshot is in exactly one of the two.

    Attributes:
        spare: Those that rules alone keep, newest first: a limit on size takes them from the end. It stands before a
            quota is applied, and some of them may be in ``retire`` for that.
    """

    keep: Mapping[str, tuple[str, ...]]
    retire: Mapping[str, tuple[str, ...]]
    spare: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator adds to the policy in the log.

    Attributes:
        spare_bytes: What a quota leaves for ``RetentionVerdict.spare``; None for no quota.
        reads_back: Whether it reads snapshots back. Then the newest one whose checksums were compared is kept as well:
            right sizes alone do not make another one as good.
        reading: Id of the snapshot that it reads now, or empty. It is kept until the answer is known, so that reading
            comes to an end even where snapshots are made faster than they are read.
    """

    spare_bytes: int | None = None
    reads_back: bool = False
    reading: str = ""


NO_TERMS = Terms()


def judge(run: Run, *, now: dt.datetime, terms: Terms = NO_TERMS) -> RetentionVerdict:
    """Apply the policy in the log.

    Args:
        now: The *store's* clock, like every time inside ``run``.
    """
    chain = [s for s in lineage(run) if s.state in (SnapshotState.LIVE, SnapshotState.RETIRED)]
    branches = superseded(run)
    everything = [*chain, *branches]
    policy = run.policy.retention
    if policy is None:
        return _keep_all(everything, "NoRetention")
    if not any(s.live and s.proven for s in chain):
        return _keep_all(everything, "NothingVerified")

    replacements = _replacements(run, lambda s: s.failures == 0)
    hoped_for = _replacements(run, lambda s: not quarantined(run, s))
    standing = [s for s in chain if s.failures == 0 and s.id not in replacements]
    # The two views differ only while there are suspects.
    hopeful = [s for s in chain if not quarantined(run, s) and s.id not in hoped_for]
    keep = _floors(run, chain, (standing, hopeful), everything, policy)
    if terms.reads_back and (compared := newest_compared(run)) is not None:
        _mark(keep, [compared], "NewestCompared")
    _mark(keep, [s for s in everything if s.id == terms.reading and s.live], "BeingRead")
    floors = frozenset(keep)
    retire: Reasons = {}
    _mark(retire, [s for s in everything if s.disposition == "Retire"], "Disposition")
    if policy.max_age_seconds is not None:
        _mark(retire, [s for s in chain if (now - s.committed_at).total_seconds() > policy.max_age_seconds], "MaxAge")
    for view in (standing, hopeful):
        ruled = _rules([s for s in view if s.disposition != "Retire"], policy)
        for snapshot in view:
            for reason in ruled.get(snapshot.id, ()) if snapshot.id not in retire else ():
                _mark(keep, [snapshot], reason)
    spare = [s for s in chain if s.id in keep and s.id not in floors]
    if policy.max_total_bytes is not None:
        room = policy.max_total_bytes - sum(s.commit.bytes for s in everything if s.id in floors)
        spare = _limit_size(keep, retire, spare, room, "MaxTotalSize")
    if terms.spare_bytes is not None:
        _limit_size(keep, retire, spare, terms.spare_bytes, "Quota")
    for snapshot in chain:
        replacement = replacements.get(snapshot.id)
        if replacement and not replacement.proven and replacement.id in keep and snapshot.id not in retire:
            _mark(keep, [snapshot], "ReplacementUnverified")

    enough = sum(s.live for s in standing) >= (policy.keep_last or 1)
    for snapshot in branches:
        if snapshot.id not in retire:
            _mark(retire if enough else keep, [snapshot], "Superseded" if enough else "BranchTooYoung")
    for snapshot in chain:
        if snapshot.failures and not enough and snapshot.id not in retire:
            _mark(keep, [snapshot], "TooFewGood")
        elif snapshot.id not in keep and snapshot.id not in retire:
            _mark(retire, [snapshot], _why_unkept(run, snapshot, replacements))
    return RetentionVerdict(
        {identifier: tuple(reasons) for identifier, reasons in keep.items()},
        {identifier: tuple(reasons) for identifier, reasons in retire.items() if identifier not in keep},
        tuple(s.id for s in spare),
    )


def newest_compared(run: Run) -> Snapshot | None:
    """The newest live snapshot of the lineage whose checksums were all compared, and match."""
    good = (s for s in walk(run, run.newest) if s.live and not s.failures and s.verified_at_least("Checksums"))
    return next(good, None)


def _keep_all(snapshots: Iterable[Snapshot], reason: str) -> RetentionVerdict:
    return RetentionVerdict({s.id: (reason,) for s in snapshots}, {})


def _mark(reasons: Reasons, snapshots: Iterable[Snapshot], reason: str) -> None:
    for snapshot in snapshots:
        given = reasons.setdefault(snapshot.id, [])
        if reason not in given:
            given.append(reason)


def _replacements(run: Run, good: Callable[[Snapshot], bool]) -> dict[str, Snapshot]:
    """The good snapshot that stands for each replaced one. A user who retires it wants the old one back."""
    sound = [s for s in lineage(run) if good(s) and s.disposition != "Retire"]
    return {s.commit.replaces: s for s in sound if s.commit.replaces}


def _floors(
    run: Run,
    chain: list[Snapshot],
    views: Iterable[list[Snapshot]],
    everything: list[Snapshot],
    policy: RetentionPolicy,
) -> Reasons:
    """What stays in any case.

    Args:
        views: Snapshots in good standing, newest first: one answer for each way the suspects may turn out.
    """
    keep: Reasons = {}
    _mark(keep, [s for s in everything if s.id == in_use(run)], "InUse")
    _mark(keep, [s for s in everything if s.id == rollback_target(run)], "RollbackTarget")
    _mark(keep, [s for s in everything if s.disposition == "Hold"], "Hold")
    for standing in views:
        _mark(keep, [s for s in standing if s.live][:1], "Newest")
    # Also when it is replaced: its replacement may not be verified yet.
    verified = next(s for s in chain if s.live and s.proven)
    _mark(keep, [verified], "NewestVerified")
    newer = [s for s in chain if s.number > verified.number and s.live]
    _mark(keep, [s for s in newer if s.failures and not quarantined(run, s)], "UnderSuspicion")
    last = policy.keep_last or 0
    for standing in views:
        # Counted over live ones as well: a retired one the policy wants back is no candidate until it is reinstated.
        wanted = {s.id for s in (*[s for s in standing if s.live][:last], *standing[:last])}
        _mark(keep, [s for s in standing if s.id in wanted], "KeepLast")
    return keep


def _rules(eligible: list[Snapshot], policy: RetentionPolicy) -> Reasons:
    keep: Reasons = {}
    if not (policy.keep_last or policy.keep_every_steps or policy.keep_every_seconds or policy.keep_best):
        _mark(keep, eligible, "NoKeepRule")
    if policy.keep_every_steps:
        _mark(keep, _oldest_of_each(policy.keep_every_steps, [(s.step, s) for s in eligible]), "KeepEverySteps")
    if policy.keep_every_seconds:
        times = [(s.committed_at.timestamp(), s) for s in eligible]
        _mark(keep, _oldest_of_each(policy.keep_every_seconds, times), "KeepEvery")
    for rule in policy.keep_best:
        _mark(keep, _best(eligible, rule), f"KeepBest:{rule.metric}")
    return keep


def _oldest_of_each(interval: float, positions: list[tuple[float, Snapshot]]) -> list[Snapshot]:
    """The oldest snapshot in each interval; ``positions`` are newest first, so the last one met is the oldest."""
    return list({position // interval: snapshot for position, snapshot in positions}.values())


def _best(snapshots: list[Snapshot], rule: KeepBest) -> list[Snapshot]:
    scored = [(value, s) for s in snapshots if (value := metric_value(s, rule.metric)) is not None]
    # Negated by copy_negate: arithmetic would round, and overflow on a hostile exponent.
    scored.sort(key=lambda pair: (pair[0] if rule.mode == "Min" else pair[0].copy_negate(), -pair[1].number))
    return [snapshot for _, snapshot in scored[: rule.count]]


def metric_value(snapshot: Snapshot, metric: str) -> Decimal | None:
    """The recorded value, or None when it is absent or not a finite number (NaN is never best)."""
    try:
        value = Decimal(snapshot.commit.metrics.get(metric, "nan"))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _limit_size(
    keep: Reasons, retire: Reasons, kept_by_rules: list[Snapshot], room: int, reason: str
) -> list[Snapshot]:
    """Retire what does not fit, and return what does."""
    for snapshot in kept_by_rules:
        room -= snapshot.commit.bytes
        if room < 0:
            del keep[snapshot.id]
            _mark(retire, [snapshot], reason)
    return [snapshot for snapshot in kept_by_rules if snapshot.id in keep]


def _why_unkept(run: Run, snapshot: Snapshot, replacements: Mapping[str, Snapshot]) -> str:
    if quarantined(run, snapshot):
        return "Damaged"
    return "Replaced" if snapshot.id in replacements else "NoRuleKeepsIt"
