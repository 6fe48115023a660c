"""The selectors of the retention rules: each chooses the snapshots of a row of the table in ``core.retention``.

Each is a function of the ``Case``, named for what it selects, in the order of the table.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from checkpoint_sidecar.core.best import best_first
from checkpoint_sidecar.core.lineage import (
    in_use,
    lineage,
    newest_compared,
    quarantined,
    rollback_target,
    superseded,
)
from checkpoint_sidecar.core.policy import KeepBest, RetentionPolicy
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.sharing import DistinctBytes, distinct_bytes


@dataclass(frozen=True, slots=True)
class Quota:
    """A run's part of the quota of its namespace, in bytes.

    Attributes:
        limit: For all runs of the namespace together.
        required: What they retain regardless of any quota.
        spare_bytes: What is left to this run for ``RetentionVerdict.spare``; None if all of them may stay.
    """

    limit: int
    required: int
    spare_bytes: int | None = None

    @property
    def exceeded(self) -> bool:
        """Whether nothing that may be retired would be enough."""
        return self.required > self.limit


@dataclass(frozen=True, slots=True)
class Terms:
    """The operator's additions to the policy in the log.

    Attributes:
        quota: That of the namespace; None without one.
        reads_back: Whether it reads snapshots back. Then the newest one whose checksums were compared is kept as well,
            because matching sizes alone do not make another one as good.
        reading: Id of the snapshot that it is reading, or empty. It is kept until the result is known, so that reading
            ends even if snapshots are made faster than they are read.
        wanted: Ids of the snapshots at which other runs are about to begin. They are kept until those have a commit.
    """

    quota: Quota | None = None
    reads_back: bool = False
    reading: str = ""
    wanted: frozenset[str] = frozenset()


NO_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Case:
    """A run prepared for the rules, and their decisions so far. All sequences are newest first.

    Attributes:
        chain: Live and retired snapshots of the
        branches: Those that were rolled back, in order of commit.
        without_suspects, with_suspects: Those in good standing if all suspects are bad, and if all are good.
        replacements: The replacement by id of the replaced snapshot.
        enough: Whether the lineage has its ``keepLast``.
        ruled: Ids that keep rules have selected and no limit of the policy has taken.
    """

    run: Run
    now: dt.datetime
    terms: Terms
    policy: RetentionPolicy
    chain: tuple[Snapshot, ...]
    branches: tuple[Snapshot, ...]
    without_suspects: tuple[Snapshot, ...]
    with_suspects: tuple[Snapshot, ...]
    replacements: Mapping[str, Snapshot]
    enough: bool
    keep: dict[str, list[str]] = field(default_factory=dict)
    retire: dict[str, list[str]] = field(default_factory=dict)
    floors: set[str] = field(default_factory=set)
    ruled: set[str] = field(default_factory=set)

    @property
    def everything(self) -> tuple[Snapshot, ...]:
        return (*self.chain, *self.branches)

    @property
    def spare(self) -> tuple[Snapshot, ...]:
        """Snapshots that only keep rules keep."""
        return tuple(s for s in self.chain if s.id in self.ruled and s.id not in self.floors)

    def having(self, identifier: str | None) -> Iterator[Snapshot]:
        return (s for s in self.everything if s.id == identifier)


View = Callable[[Case], tuple[Snapshot, ...]]
VIEWS: tuple[View, ...] = (attrgetter("without_suspects"), attrgetter("with_suspects"))
"""Good standing if all suspects are bad, and if all are good. The two differ only while there are suspects."""


def case_of(run: Run, now: dt.datetime, terms: Terms) -> Case:
    """Group the snapshots of a run for the rules, without any decision."""
    chain = tuple(s for s in lineage(run) if s.state in (SnapshotState.LIVE, SnapshotState.RETIRED))
    policy = run.policy.retention or RetentionPolicy()
    replacements = _replacements(run, lambda s: s.failures == 0)
    hoped_for = _replacements(run, lambda s: not quarantined(run, s))
    without_suspects = tuple(s for s in chain if s.failures == 0 and s.id not in replacements)
    return Case(
        run=run,
        now=now,
        terms=terms,
        policy=policy,
        chain=chain,
        branches=superseded(run),
        without_suspects=without_suspects,
        with_suspects=tuple(s for s in chain if not quarantined(run, s) and s.id not in hoped_for),
        replacements=replacements,
        enough=sum(s.live for s in without_suspects) >= (policy.keep_last or 1),
    )


def _replacements(run: Run, good: Callable[[Snapshot], bool]) -> dict[str, Snapshot]:
    """Return the good replacement of each replaced snapshot. A user who retires it wants the old one back."""
    sound = [s for s in lineage(run) if good(s) and s.disposition != "Retire"]
    return {s.commit.replaces: s for s in sound if s.commit.replaces}


def everything(case: Case) -> Iterable[Snapshot]:
    return case.everything


def everything_while_nothing_is_verified(case: Case) -> Iterable[Snapshot]:
    return () if any(s.live and s.proven for s in case.chain) else case.everything


def used(case: Case) -> Iterable[Snapshot]:
    return case.having(in_use(case.run))


def pending_target(case: Case) -> Iterable[Snapshot]:
    return case.having(rollback_target(case.run))


def held(case: Case) -> Iterable[Snapshot]:
    return (s for s in case.everything if s.disposition == "Hold")


def newest(view: View, case: Case) -> Iterable[Snapshot]:
    return [s for s in view(case) if s.live][:1]


def newest_verified(case: Case) -> Iterable[Snapshot]:
    # Even if it is replaced: its replacement may not be verified yet.
    return [s for s in case.chain if s.live and s.proven][:1]


def newer_suspects(case: Case) -> Iterable[Snapshot]:
    verified = next((s.number for s in case.chain if s.live and s.proven), 0)
    newer = (s for s in case.chain if s.number > verified and s.live)
    return (s for s in newer if s.failures and not quarantined(case.run, s))


def last(view: View, case: Case) -> Iterable[Snapshot]:
    count = case.policy.keep_last or 0
    # Live ones count as well: a retired one that the policy wants back is not a candidate until it is reinstated.
    wanted = {s.id for s in (*[s for s in view(case) if s.live][:count], *view(case)[:count])}
    return (s for s in view(case) if s.id in wanted)


def compared(case: Case) -> Iterable[Snapshot]:
    found = newest_compared(case.run) if case.terms.reads_back else None
    return () if found is None else (found,)


def being_read(case: Case) -> Iterable[Snapshot]:
    return (s for s in case.having(case.terms.reading) if s.live)


def wanted_elsewhere(case: Case) -> Iterable[Snapshot]:
    return (s for s in case.everything if s.id in case.terms.wanted)


def given_up(case: Case) -> Iterable[Snapshot]:
    return (s for s in case.everything if s.disposition == "Retire")


def too_old(case: Case) -> Iterable[Snapshot]:
    limit = case.policy.max_age_seconds
    return (s for s in case.chain if limit is not None and (case.now - s.committed_at).total_seconds() > limit)


def competing(view: View, case: Case) -> list[Snapshot]:
    return [s for s in view(case) if s.disposition != "Retire"]


def oldest_by_step(interval: int, view: View, case: Case) -> Iterable[Snapshot]:
    # Newest first, so the last one met in an interval is the oldest.
    return {s.step // interval: s for s in competing(view, case)}.values()


def oldest_by_time(interval: float, view: View, case: Case) -> Iterable[Snapshot]:
    return {s.committed_at.timestamp() // interval: s for s in competing(view, case)}.values()


def best(rule: KeepBest, view: View, case: Case) -> Iterable[Snapshot]:
    return best_first(competing(view, case), rule)[: rule.count]


def beyond_total_size(case: Case) -> Iterable[Snapshot]:
    limit = case.policy.max_total_bytes
    return () if limit is None else _beyond(case, limit - distinct_bytes(_floors(case)))


def beyond_quota(case: Case) -> Iterable[Snapshot]:
    limit = case.terms.quota.spare_bytes if case.terms.quota else None
    return () if limit is None else _beyond(case, limit)


def _floors(case: Case) -> list[Snapshot]:
    return [s for s in case.everything if s.id in case.floors]


def _beyond(case: Case, room: int) -> Iterator[Snapshot]:
    """Yield the spare snapshots that do not fit beside the floors, and all after the first of them."""
    total = DistinctBytes()
    for floor in _floors(case):
        total.add(floor)
    for snapshot in case.spare:
        room -= total.add(snapshot)
        if room < 0:
            yield snapshot


def replaced_by_unverified(case: Case) -> Iterator[Snapshot]:
    for snapshot in case.chain:
        replacement = case.replacements.get(snapshot.id)
        # One that this very rule keeps counts too: the chain is newest first.
        if replacement and not replacement.proven and replacement.id in case.keep:
            yield snapshot


def superseded_too_early(case: Case) -> Iterable[Snapshot]:
    return () if case.enough else case.branches


def bad_but_needed(case: Case) -> Iterable[Snapshot]:
    return (s for s in case.chain if s.failures and not case.enough)


def rolled_back(case: Case) -> Iterable[Snapshot]:
    return case.branches


def damaged(case: Case) -> Iterable[Snapshot]:
    return (s for s in case.chain if quarantined(case.run, s))


def replaced(case: Case) -> Iterable[Snapshot]:
    return (s for s in case.chain if s.id in case.replacements)
