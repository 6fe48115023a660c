"""The promises hold under random interleavings, crashes, lost replies and late puts; without a rule, they fall.

See ``explorer`` for what is explored. A failure names its seed; ``explore(seed, rules=Rules(), requests=...)`` replays
it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from checkpoint_sidecar.core import attempt, fold, overwrite, selection
from checkpoint_sidecar.core.lineage import RestorePlan, restore_plan
from checkpoint_sidecar.core.log import PurgeStarted, SnapshotCommitted, SnapshotPurged, SnapshotReinstated
from checkpoint_sidecar.core.run import RestoreRequest, Run, Snapshot, SnapshotState
from core.explorer import BrokenPromiseError, Rules, explore

SEEDS = range(100)


def broken(rules: Rules, requests: int) -> dict[str, str]:
    """The promises that fell, each with the first seed and case."""
    found: dict[str, str] = {}
    for seed in SEEDS:
        try:
            explore(seed, rules=rules, requests=requests)
        except BrokenPromiseError as error:
            promise, case = error.args
            found.setdefault(promise, f"seed {seed}: {case}")
    return found


def falls(promise: str, rules: Rules | None = None) -> bool:
    """Whether the promise falls at some seed; a rare case may need hundreds."""
    for seed, requests in itertools.product(range(500), (0, 3)):
        try:
            explore(seed, rules=rules or Rules(), requests=requests)
        except BrokenPromiseError as error:
            if error.args[0] == promise:
                return True
    return False


@pytest.mark.parametrize("requests", [0, 3], ids=["no user asks for anything", "a user asks for rollbacks"])
def test_the_promises_hold(requests: int) -> None:
    assert broken(Rules(), requests) == {}


def test_the_core_holds_them_even_against_a_trainer_that_restores_nothing() -> None:
    assert broken(Rules(restore_first=False), 3) == {}


def test_the_explorer_gets_everywhere() -> None:
    """An explorer that never purges, forks or meets damage would prove nothing by being content."""
    worlds = [explore(seed, rules=Rules(), requests=3) for seed in range(30)]
    kinds = [type(entry.body) for world in worlds for entry in world.entries]
    assert kinds.count(SnapshotCommitted) > 150
    assert kinds.count(PurgeStarted) >= kinds.count(SnapshotPurged) > 30
    assert kinds.count(SnapshotReinstated) > 0
    assert sum(len(world.run.consumed) for world in worlds) > 10
    assert sum(len(world.damaged) for world in worlds) > 10


@pytest.mark.parametrize(
    ("rules", "promise"),
    [
        pytest.param(Rules(recompute=False), "P4", id="recompute after a conflict"),
        pytest.param(Rules(settle=False), "P2", id="settle unknown outcomes before cleaning up"),
        pytest.param(Rules(evidence_only=False), "evidence", id="only evidence counts against a snapshot"),
        pytest.param(Rules(purge_started_first=False), "P2", id="PurgeStarted before the first delete"),
    ],
)
def test_without_a_rule_of_the_writers_a_promise_falls(rules: Rules, promise: str) -> None:
    assert falls(promise, rules)


def _without_fencing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Run, "may_commit", lambda run, number: number in run.attempts)


def _without_in_use(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(selection, "in_use", lambda _: None)


def _without_rollback_target(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(selection, "rollback_target", lambda _: None)


def _without_verification(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Snapshot, "proven", property(lambda snapshot: snapshot.failures == 0))


def _without_consumption(patch: pytest.MonkeyPatch) -> None:
    committing: Callable[..., Run] = fold.FOLD[SnapshotCommitted]

    def committed(run: Run, *arguments: Any) -> Run:
        return replace(committing(run, *arguments), pending=run.pending)

    patch.setitem(fold.FOLD, SnapshotCommitted, committed)


def _without_reinstating(patch: pytest.MonkeyPatch) -> None:
    def planned(run: Run, request: RestoreRequest | None) -> RestorePlan:
        return replace(restore_plan(run, request), last_resort=())

    patch.setattr(attempt, "restore_plan", planned)


def _without_keeping_the_superseded(patch: pytest.MonkeyPatch) -> None:
    def newest_first(run: Run) -> tuple[Snapshot, ...]:
        return tuple(s for s in reversed([*run.snapshots.values()]) if s.state is not SnapshotState.REJECTED)

    patch.setattr(selection, "lineage", newest_first)


@pytest.mark.parametrize(
    ("sabotage", "promise"),
    [
        pytest.param(_without_fencing, "P4", id="fencing"),
        pytest.param(_without_in_use, "P6", id="in use"),
        pytest.param(_without_rollback_target, "P6", id="the target of a pending rollback"),
        pytest.param(_without_verification, "P6", id="something verified before anything goes"),
        pytest.param(_without_consumption, "once", id="a commit consumes the request"),
        pytest.param(_without_reinstating, "P8", id="retired ones are the last resort"),
        pytest.param(_without_keeping_the_superseded, "P6", id="lineage by parent links"),
    ],
)
def test_without_a_rule_of_the_core_a_promise_falls(
    sabotage: Callable[[pytest.MonkeyPatch], None], promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    assert falls(promise)


def test_without_the_check_on_fresh_starts_a_trainer_that_restores_nothing_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (attempt, overwrite):
        monkeypatch.setattr(module, "may_begin_anew", lambda *_: True)
    assert falls("P8", Rules(restore_first=False))
