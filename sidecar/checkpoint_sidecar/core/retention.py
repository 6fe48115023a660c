"""Decides which snapshots to keep: a pure function over a table of rules, the same for the operator and a preview.

``rules_of`` is the table: rows of effect, reason and selector. ``judge`` asks them in order. The first effect that
selects a snapshot decides about it, and further rules with that effect add their reasons:

1. No verified snapshot on the lineage: nothing is retired at all (``Effect.ALL``).
2. Floors are never retired (``FLOOR``): the snapshot in use, the target of a pending rollback, held ones, the newest,
   the newest verified and anything under suspicion that is newer than that, the ``keepLast`` newest; where snapshots
   are read back, the newest whose checksums were compared, and the one that is being read; those at which other runs
   are about to begin.
3. ``disposition: Retire``, set by a user, and ``maxAge`` (``RETIRE``).
4. Keep rules (``RULE``), kept if any rule says so: ``keepEverySteps`` and ``keepEvery`` (the oldest of each interval,
   which stays the same as time passes), ``keepBest``. They choose among all snapshots, old ones too: a greater
   ``maxAge`` never loses a snapshot that a smaller one kept.
5. ``maxTotalSize`` limits what the rules keep (``LIMIT``): floors first, then the newest that fit. After it comes the
   quota of the namespace, where the caller has one (``QUOTA``).
6. Exceptions for snapshots that no rule keeps (``KEEP``): a replaced one stays until its replacement is verified;
   superseded ones (of a branch that was rolled back) and suspects stay until the lineage has its ``keepLast``.
7. All others are retired (``REST``).

Only snapshots in good standing count for ``keepLast`` and compete under the keep rules: no evidence was found against
them, and no later save replaces them.

A suspect (some evidence, not enough for quarantine) is read again, and until then nothing depends on the answer: the
rules that count or compete are asked twice, once as if all suspects were bad and once as if all were good.

Snapshots that are already retired are judged too: one that the policy now wants back is reinstated.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from functools import partial

from checkpoint_sidecar.core import selection
from checkpoint_sidecar.core.policy import RetentionPolicy
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.core.selection import NO_TERMS, VIEWS, Case, Terms, View, case_of


class RetentionReason(StrEnum):
    """Reason for keeping or retiring a snapshot, as shown to users. A colon and the metric follow ``KeepBest``."""

    NO_RETENTION = "NoRetention"
    NOTHING_VERIFIED = "NothingVerified"
    IN_USE = "InUse"
    ROLLBACK_TARGET = "RollbackTarget"
    HOLD = "Hold"
    NEWEST = "Newest"
    NEWEST_VERIFIED = "NewestVerified"
    UNDER_SUSPICION = "UnderSuspicion"
    KEEP_LAST = "KeepLast"
    NEWEST_COMPARED = "NewestCompared"
    BEING_READ = "BeingRead"
    WARM_START = "WarmStart"
    DISPOSITION = "Disposition"
    MAX_AGE = "MaxAge"
    NO_KEEP_RULE = "NoKeepRule"
    KEEP_EVERY_STEPS = "KeepEverySteps"
    KEEP_EVERY = "KeepEvery"
    KEEP_BEST = "KeepBest"
    MAX_TOTAL_SIZE = "MaxTotalSize"
    QUOTA = "Quota"
    REPLACEMENT_UNVERIFIED = "ReplacementUnverified"
    BRANCH_TOO_YOUNG = "BranchTooYoung"
    TOO_FEW_GOOD = "TooFewGood"
    SUPERSEDED = "Superseded"
    DAMAGED = "Damaged"
    REPLACED = "Replaced"
    NO_RULE_KEEPS_IT = "NoRuleKeepsIt"


@dataclass(frozen=True, slots=True)
class RetentionVerdict:
    """The policy's decision, by snapshot id; every live or retired snapshot is in exactly one of the two.

    Judging walks all snapshots of a run, so a verdict is made once for a log and a moment, and passed on.

    Attributes:
        spare: Snapshots that rules alone keep, newest first: a limit on size takes them from the end. They are listed
            as they are before a quota applies, so some of them may be in ``retire``.
        run, now, terms: The arguments of the verdict.
    """

    keep: Mapping[str, tuple[str, ...]]
    retire: Mapping[str, tuple[str, ...]]
    spare: tuple[str, ...]
    run: Run = field(compare=False, repr=False)
    now: dt.datetime = field(compare=False)
    terms: Terms = field(compare=False)


class Effect(Enum):
    """The effect of a rule on the snapshots that it selects."""

    ALL = auto()
    """Keep them, and skip the other rules."""
    FLOOR = auto()
    """Keep them, regardless of later rules."""
    RETIRE = auto()
    """Retire them, unless they are floors."""
    RULE = auto()
    """Keep them, unless a rule before retires them; limits may still take them."""
    LIMIT = auto()
    """Retire them although a rule keeps them."""
    QUOTA = auto()
    """As LIMIT, but still count them as spare."""
    KEEP = auto()
    """Keep them, unless a rule before retires them."""
    REST = auto()
    """Retire them, unless a rule before has decided."""


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """One row of the table."""

    effect: Effect
    reason: str
    selects: Callable[[Case], Iterable[Snapshot]]


def judge(run: Run, *, now: dt.datetime, terms: Terms = NO_TERMS) -> RetentionVerdict:
    """Apply the policy in the log.

    Args:
        now: The *store's* clock, like every time inside ``run``.
    """
    case = case_of(run, now, terms)
    for rule in rules_of(run.policy.retention):
        for snapshot in rule.selects(case):
            _apply(rule, snapshot.id, case)
        if rule.effect is Effect.ALL and case.keep:
            break
    return RetentionVerdict(
        keep={identifier: tuple(reasons) for identifier, reasons in case.keep.items()},
        retire={name: tuple(reasons) for name, reasons in case.retire.items() if name not in case.keep},
        spare=tuple(s.id for s in case.spare),
        run=run,
        now=now,
        terms=terms,
    )


def rules_of(policy: RetentionPolicy | None) -> tuple[RetentionRule, ...]:
    """Return the rules of a policy in order of precedence."""
    if policy is None:
        return (RetentionRule(Effect.ALL, RetentionReason.NO_RETENTION, selection.everything),)
    return (
        RetentionRule(Effect.ALL, RetentionReason.NOTHING_VERIFIED, selection.everything_while_nothing_is_verified),
        RetentionRule(Effect.FLOOR, RetentionReason.IN_USE, selection.used),
        RetentionRule(Effect.FLOOR, RetentionReason.ROLLBACK_TARGET, selection.pending_target),
        RetentionRule(Effect.FLOOR, RetentionReason.HOLD, selection.held),
        *(RetentionRule(Effect.FLOOR, RetentionReason.NEWEST, partial(selection.newest, view)) for view in VIEWS),
        RetentionRule(Effect.FLOOR, RetentionReason.NEWEST_VERIFIED, selection.newest_verified),
        RetentionRule(Effect.FLOOR, RetentionReason.UNDER_SUSPICION, selection.newer_suspects),
        *(RetentionRule(Effect.FLOOR, RetentionReason.KEEP_LAST, partial(selection.last, view)) for view in VIEWS),
        RetentionRule(Effect.FLOOR, RetentionReason.NEWEST_COMPARED, selection.compared),
        RetentionRule(Effect.FLOOR, RetentionReason.BEING_READ, selection.being_read),
        RetentionRule(Effect.FLOOR, RetentionReason.WARM_START, selection.wanted_elsewhere),
        RetentionRule(Effect.RETIRE, RetentionReason.DISPOSITION, selection.given_up),
        RetentionRule(Effect.RETIRE, RetentionReason.MAX_AGE, selection.too_old),
        *(rule for view in VIEWS for rule in _keep_rules(policy, view)),
        RetentionRule(Effect.LIMIT, RetentionReason.MAX_TOTAL_SIZE, selection.beyond_total_size),
        RetentionRule(Effect.QUOTA, RetentionReason.QUOTA, selection.beyond_quota),
        RetentionRule(Effect.KEEP, RetentionReason.REPLACEMENT_UNVERIFIED, selection.replaced_by_unverified),
        RetentionRule(Effect.KEEP, RetentionReason.BRANCH_TOO_YOUNG, selection.superseded_too_early),
        RetentionRule(Effect.KEEP, RetentionReason.TOO_FEW_GOOD, selection.bad_but_needed),
        RetentionRule(Effect.REST, RetentionReason.SUPERSEDED, selection.rolled_back),
        RetentionRule(Effect.REST, RetentionReason.DAMAGED, selection.damaged),
        RetentionRule(Effect.REST, RetentionReason.REPLACED, selection.replaced),
        RetentionRule(Effect.REST, RetentionReason.NO_RULE_KEEPS_IT, selection.everything),
    )


def _keep_rules(policy: RetentionPolicy, view: View) -> Iterator[RetentionRule]:
    """Yield the rules that compare snapshots in good standing with each other, as far as the policy sets them."""
    if not (policy.keep_last or policy.keep_every_steps or policy.keep_every_seconds or policy.keep_best):
        yield RetentionRule(Effect.RULE, RetentionReason.NO_KEEP_RULE, partial(selection.competing, view))
    if steps := policy.keep_every_steps:
        yield RetentionRule(
            Effect.RULE, RetentionReason.KEEP_EVERY_STEPS, partial(selection.oldest_by_step, steps, view)
        )
    if seconds := policy.keep_every_seconds:
        yield RetentionRule(Effect.RULE, RetentionReason.KEEP_EVERY, partial(selection.oldest_by_time, seconds, view))
    for best in policy.keep_best:
        reason = f"{RetentionReason.KEEP_BEST}:{best.metric}"
        yield RetentionRule(Effect.RULE, reason, partial(selection.best, best, view))


def _apply(rule: RetentionRule, identifier: str, case: Case) -> None:
    kept, retired = identifier in case.keep, identifier in case.retire
    match rule.effect:
        case Effect.ALL | Effect.FLOOR:
            case.floors.add(identifier)
            _add(case.keep, identifier, rule.reason)
        case Effect.RETIRE:
            _add(case.retire, identifier, rule.reason)
        case Effect.RULE if not retired:
            case.ruled.add(identifier)
            _add(case.keep, identifier, rule.reason)
        case Effect.LIMIT | Effect.QUOTA:
            del case.keep[identifier]
            _add(case.retire, identifier, rule.reason)
            if rule.effect is Effect.LIMIT:
                case.ruled.discard(identifier)
        case Effect.KEEP if not retired:
            _add(case.keep, identifier, rule.reason)
        case Effect.REST if not (kept or retired):
            _add(case.retire, identifier, rule.reason)


def _add(reasons: dict[str, list[str]], identifier: str, reason: str) -> None:
    given = reasons.setdefault(identifier, [])
    if reason not in given:
        given.append(str(reason))
