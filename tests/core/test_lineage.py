"""What a start restores: scenarios, each told as the log tells it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from checkpoint_sidecar.core.attempt import start
from checkpoint_sidecar.core.lineage import ancestors, in_use, lineage, restore_plan, rollback_target, superseded
from checkpoint_sidecar.core.policy import RestorePolicy
from support.builders import History


def run_of(*steps: int) -> History:
    """An attempt that saved some steps."""
    return History().started().committed(*steps)


def resumed(history: History) -> History:
    """The next attempt, which restored what it announced."""
    return history.started().restored()


def interrupted(history: History) -> History:
    """The next attempt, which the store failed while it restored."""
    return history.started().failed_to_restore(evidence="None")


def rolled_back(history: History, to: int, request: str = "rollback-1") -> History:
    return resumed(history.rollback(to, request=request))


def steps(history: History, identifiers: tuple[str, ...]) -> list[int]:
    return [history.snapshot(identifier).step for identifier in identifiers]


SCENARIOS: dict[str, tuple[Callable[[], History], list[int], list[int]]] = {
    "nothing was ever saved": (lambda: History().started(), [], []),
    "one attempt": (lambda: run_of(100, 200), [200, 100], []),
    "attempts that followed each other": (
        lambda: resumed(resumed(run_of(100)).committed(200)).committed(300),
        [300, 200, 100],
        [],
    ),
    "an attempt that died before its first save orphans nothing": (
        lambda: run_of(100, 200).started().started().started(),
        [200, 100],
        [],
    ),
    "an attempt that died while restoring is no evidence": (
        lambda: run_of(100, 200).started().restoring(200).started().restoring(200).started().restoring(200),
        [200, 100],
        [],
    ),
    "a restore that was interrupted is no evidence": (
        lambda: (
            run_of(100, 200).started().failed_to_restore(evidence="None").started().failed_to_restore(evidence="None")
        ),
        [200, 100],
        [],
    ),
    "a zombie that saves after its eviction changes nothing": (
        lambda: resumed(run_of(100)).committed(150).committed(200, 300, attempt=1),
        [150, 100],
        [],
    ),
    "a zombie that saves before its successor does changes nothing": (
        lambda: resumed(run_of(100)).committed(200, attempt=1),
        [100],
        [],
    ),
    "two pods of one rank: the later start wins, whichever saves first": (
        lambda: History().started().started().committed(100, attempt=1).committed(90, attempt=2),
        [90],
        [],
    ),
    "a step lower than the newest one is the newest after a rollback": (
        lambda: rolled_back(run_of(100, 200, 300), 100).committed(150),
        [150, 100],
        [],
    ),
    "a rollback is served by every start until a save carries it": (
        lambda: rolled_back(run_of(100, 200, 300), 100),
        [100],
        [],
    ),
    "two rollbacks": (
        lambda: rolled_back(rolled_back(run_of(100, 200), 100).committed(150, 250), 150, "second").committed(160),
        [160, 150, 100],
        [],
    ),
    "a rollback onto the branch that was rolled back": (
        lambda: rolled_back(rolled_back(run_of(100, 200), 100).committed(150), 200, "second").committed(250),
        [250, 200, 100],
        [],
    ),
    "a pending rollback falls back to ancestors of its target, never to anything newer": (
        lambda: run_of(100, 200, 300).found_damaged(200, 200).rollback(200),
        [100],
        [],
    ),
    "a retired parent is skipped, and comes last": (lambda: run_of(100, 200, 300).retired(200), [300, 100], [200]),
    "a purged parent is skipped, its own parent is not": (
        lambda: run_of(100, 200, 300).retired(200).purge_started(200).purged(200),
        [300, 100],
        [],
    ),
    "a snapshot whose purge began is no last resort": (
        lambda: run_of(100, 200, 300).retired(100, 200).purge_started(200),
        [300],
        [100],
    ),
    "one failure with evidence is not enough": (lambda: run_of(100, 200).found_damaged(200), [200, 100], []),
    "two failures with evidence quarantine": (
        lambda: run_of(100, 200).started().failed_to_restore().started().failed_to_restore(),
        [100],
        [],
    ),
    "a damaged retired snapshot is no last resort": (
        lambda: run_of(100, 200).retired(100).found_damaged(100, 100),
        [200],
        [],
    ),
    "all retired": (lambda: run_of(100, 200).retired(100, 200), [], [200, 100]),
    "a replaced snapshot stays a fallback": (
        lambda: resumed(run_of(100, 200).configured(overwrite="Replace")).committed(200, replaces="200-1-aaaaaaad"),
        [200, 200, 100],
        [],
    ),
    "a fresh start looks at nothing": (
        lambda: run_of(100, 200).configured(restore=RestorePolicy(mode="None")),
        [],
        [],
    ),
    "after a fresh start only the new branch counts": (
        lambda: run_of(100, 200).configured(restore=RestorePolicy(mode="None")).started().committed(10),
        [10],
        [],
    ),
    "a run that changed hands continues from the same snapshots": (
        lambda: resumed(run_of(100).adopted()).committed(200),
        [200, 100],
        [],
    ),
}


@pytest.mark.parametrize(("tell", "candidates", "last_resort"), SCENARIOS.values(), ids=SCENARIOS)
def test_the_next_start_tries(tell: Callable[[], History], candidates: list[int], last_resort: list[int]) -> None:
    history = tell()
    plan = restore_plan(history.run, history.run.pending)
    assert steps(history, plan.candidates) == candidates
    assert steps(history, plan.last_resort) == last_resort
    entry = start(history.run, world_size=4, pods=())
    assert entry.candidate == (plan.candidates[0] if plan.candidates else "")
    assert entry.restore_request == plan.request


@pytest.mark.parametrize(
    ("tell", "on_missing", "expected"),
    [
        pytest.param(History, "Auto", True, id="a new run, Auto"),
        pytest.param(History, "StartFresh", True, id="a new run, StartFresh"),
        pytest.param(History, "Fail", False, id="a new run, Fail"),
        pytest.param(lambda: run_of(100), "Auto", False, id="a run with a snapshot, Auto"),
        pytest.param(lambda: run_of(100).retired(100), "Auto", False, id="all retired, Auto"),
        pytest.param(lambda: run_of(100).found_damaged(100, 100), "Auto", False, id="all damaged, Auto"),
        pytest.param(lambda: run_of(100).found_damaged(100, 100), "StartFresh", True, id="all damaged, StartFresh"),
        pytest.param(lambda: History().started().committed(100, path="elsewhere"), "Auto", True, id="only rejected"),
        pytest.param(lambda: run_of(100, 200).rollback(100), "StartFresh", False, id="a rollback never begins anew"),
    ],
)
def test_training_begins_at_step_0_only_if_nothing_was_ever_saved_or_a_user_asked_for_it(
    tell: Callable[[], History], on_missing: str, expected: bool
) -> None:
    history = tell().configured(restore=RestorePolicy(on_missing=on_missing))  # type: ignore[arg-type]
    assert restore_plan(history.run, history.run.pending).fresh_start is expected


def test_a_lower_limit_of_failures_quarantines_sooner() -> None:
    history = run_of(100, 200).found_damaged(200)
    assert steps(history, restore_plan(history.run, None).candidates) == [200, 100]
    history.configured(restore=RestorePolicy(max_failures_per_snapshot=1))
    assert steps(history, restore_plan(history.run, None).candidates) == [100]


def test_lineage_walks_the_parents_of_the_newest_commit_through_purged_ones() -> None:
    history = rolled_back(run_of(100, 200, 300).retired(100).purge_started(100).purged(100), 200).committed(250)
    assert [s.step for s in lineage(history.run)] == [250, 200, 100]
    assert [s.step for s in superseded(history.run)] == [300]


def test_ancestors_of_nothing_are_none() -> None:
    assert ancestors(History().run, None) == ancestors(History().run, "999-1-abcdefgh") == ()


def test_the_target_of_a_pending_rollback_is_known_until_it_was_served() -> None:
    history = run_of(100, 200).rollback(100)
    assert rollback_target(history.run) == history.id(100)
    assert rollback_target(resumed(history).committed(150).run) is None


def test_only_the_highest_attempt_has_a_snapshot_in_use() -> None:
    history = run_of(100, 200).started()
    assert in_use(history.run) == history.id(200)
    history.started(candidate=history.id(100)).restoring(200, attempt=2)
    assert in_use(history.run) == history.id(100)
    assert in_use(History().run) is None
