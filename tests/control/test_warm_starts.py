"""Where a new run begins, if its Checkpoint names another one: at what snapshot, by which grant, and until when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from checkpoint_operator.decide.plan import store_actions
from checkpoint_operator.decide.warm_starts import judge_warm_start
from checkpoint_operator.gather.warm_starts import WarmStarts
from checkpoint_operator.model.actions import ChooseWarmStart, Reinstate, Retire
from checkpoint_operator.model.observed import Checkpoint, Key, Mirror, Observed, SourceCheckpoint
from checkpoint_operator.report.events import for_entries
from checkpoint_operator.report.health import judge_conditions
from checkpoint_operator.report.status import status_of
from checkpoint_sidecar.core.api import ConditionType, LocalReference, Reason, Storage
from checkpoint_sidecar.core.api_sources import Grant
from checkpoint_sidecar.core.log import WarmStartChosen, WarmStartFinished
from checkpoint_sidecar.core.policy import RetentionPolicy
from support.builders import History
from support.observations import changed, observed, quiet, saved, spec_of

LATEST, BEST, HELD, OLD = "900-2-aaaaaaaa", "500-1-bbbbbbbb", "300-1-cccccccc", "100-1-dddddddd"
READY = {"conditions": [{"type": "Ready", "status": "True"}]}
NEIGHBOR, STRANGER = Key("training", "base"), Key("research", "base")


def source(key: Key = NEIGHBOR, *grants: Grant, **storage: Any) -> SourceCheckpoint:
    """Another Checkpoint with four snapshots."""
    mirrors = tuple(
        Mirror(f"base-{each}", each, 1, "Hold" if each == HELD else "Auto", READY) for each in (LATEST, BEST, HELD, OLD)
    )
    status = {"latest": {"snapshot": LATEST}, "best": {"snapshot": BEST}}
    return SourceCheckpoint(key, Storage("s3://bucket/base", **storage), grants, status, mirrors)


def seen(start: str, found: SourceCheckpoint | None, history: History | None = None, **fields: Any) -> Observed:
    """A configured new run whose spec names another Checkpoint."""
    history = history or History().configured()
    asked = {"checkpoint": start, **fields}
    return changed(quiet(observed(history, restore={"startFrom": asked})), source=found)


def chosen(it: Observed) -> str | None:
    verdict = judge_warm_start(it)
    return verdict.chosen.snapshot if verdict is not None and verdict.chosen is not None else None


def reason(it: Observed) -> tuple[str, str]:
    judged = next(each for each in judge_conditions(it) if each.type is ConditionType.RESTORE_ENFORCED)
    return judged.reason, judged.message


@pytest.mark.parametrize(
    ("start", "snapshot"),
    [
        ("base", LATEST),
        ("base@latest", LATEST),
        ("base@best", BEST),
        ("base@300", HELD),
        (f"base@{OLD}", OLD),
        ("base@100-1-d", OLD),
        ("training/base@best", BEST),
    ],
)
def test_a_neighbor_is_named_with_a_selector(start: str, snapshot: str) -> None:
    it = seen(start, source(), part="model")
    (action,) = (each for each in store_actions(it) if isinstance(each, ChooseWarmStart))
    assert (action.chosen.snapshot, action.chosen.url, action.chosen.part) == (snapshot, "s3://bucket/base", "model")
    assert action.chosen.step == int(snapshot.split("-")[0])


@pytest.mark.parametrize("start", ["base@7", "base@999-1-eeeeeeee", "base@1"])
def test_what_is_not_there_is_said_and_nothing_is_chosen(start: str) -> None:
    it = seen(start, source())
    assert reason(it)[0] == Reason.WARM_START_NOT_FOUND
    assert not any(isinstance(each, ChooseWarmStart) for each in store_actions(it))
    assert "warmStart" not in status_of(it)
    assert reason(seen("other", None))[0] == Reason.WARM_START_NOT_FOUND


def test_a_snapshot_that_cannot_be_restored_is_none() -> None:
    found = source()
    unready = tuple(replace(each, status={}) for each in found.mirrors)
    assert chosen(seen("base@500", replace(found, mirrors=unready))) is None


@pytest.mark.parametrize(
    ("entries", "allowed"),
    [
        (("latest",), {"latest", LATEST, "900"}),
        (("best",), {"best", BEST, "500"}),
        (("held",), {"300", HELD}),
        (("100", BEST), {"100", OLD, "best", "500", BEST}),
        (("all",), {"latest", "best", "300", OLD}),
    ],
)
def test_a_grant_opens_what_it_names_and_nothing_else(entries: tuple[str, ...], allowed: set[str]) -> None:
    for selector in ("latest", "best", "900", "500", "300", "100", LATEST, BEST, HELD, OLD):
        it = seen(f"research/base@{selector}", source(STRANGER, Grant("training", entries)))
        if entries == ("all",) or selector in allowed:
            assert chosen(it) is not None, selector
        else:
            assert (chosen(it), reason(it)[0]) == (None, Reason.WARM_START_NOT_GRANTED), selector


def test_without_a_grant_nothing_is_said_about_the_other_one() -> None:
    """Not whether it exists, has this snapshot, or grants something to others."""
    answers = {
        reason(seen("research/base@500", found))
        for found in (
            None,
            source(STRANGER),
            source(STRANGER, Grant("elsewhere", ("all",))),
            source(STRANGER, Grant("training", ("latest",))),
        )
    }
    ((word, message),) = answers
    assert word == Reason.WARM_START_NOT_GRANTED
    assert "does not exist, or does not grant" in message
    assert reason(seen("research/base@7", source(STRANGER, Grant("training", ("latest",))))) == (
        word,
        message.replace("500", "7"),
    )


def test_a_choice_stays_and_a_revoked_grant_closes_the_door_again() -> None:
    history = History().configured()
    granted = source(STRANGER, Grant("training", ("latest",)))
    it = seen("research/base", granted, history)
    verdict = judge_warm_start(it)
    assert verdict is not None
    assert verdict.chosen is not None
    assert "warmStart" not in status_of(it), "not before it is in the log"
    it = seen("research/base", granted, history.append(verdict.chosen))
    assert status_of(it)["warmStart"] == {
        "state": "Pending",
        "url": "s3://bucket/base",
        "snapshot": LATEST,
        "step": 900,
        "checkpoint": "research/base",
    }
    moved = replace(granted, status={"latest": {"snapshot": "950-2-ffffffff"}})
    assert chosen(seen("research/base", moved, history)) == LATEST
    assert not any(isinstance(each, ChooseWarmStart) for each in store_actions(seen("research/base", moved, history)))
    revoked = seen("research/base", replace(granted, grants=()), history)
    assert reason(revoked)[0] == Reason.WARM_START_NOT_GRANTED
    assert "warmStart" not in status_of(revoked)
    again = seen("research/base@best", source(STRANGER, Grant("training", ("all",))), history)
    assert chosen(again) == BEST, "another request is another choice"


def test_from_the_first_commit_on_the_other_run_does_not_matter() -> None:
    choice = WarmStartChosen("Checkpoint training/base@latest", "s3://bucket/base", LATEST, 900)
    outcome = WarmStartFinished(1, choice.url, LATEST, 900, restored=True, seconds=2.5)
    history = History().configured().append(choice).started().append(outcome)
    status = status_of(seen("base", source(), history))
    assert status["lastRestore"] == {
        "attempt": 1,
        "reason": "WarmStart",
        "time": status["attempt"]["startedAt"],
        "step": 900,
        "snapshot": LATEST,
        "seconds": 3,
    }
    assert status["attempt"]["restoredStep"] == 900
    it = seen("base", None, history.committed(901))
    assert judge_warm_start(it) is None
    assert status_of(it)["warmStart"] | {"url": ""} == {
        "state": "Used",
        "url": "",
        "snapshot": LATEST,
        "step": 900,
        "attempt": 1,
    }
    assert reason(it) == ("RestoredAsAsked", f"Attempt 1 began at s3://bucket/base@{LATEST}.")
    events = [draft.reason for draft in for_entries(history.entries, history.run)]
    assert events == ["RunClaimed", "WarmStartChosen", "AttemptStarted", "Restored", "SnapshotCommitted"]


def test_a_run_that_began_by_itself_says_that_the_request_came_too_late() -> None:
    assert status_of(seen("base", None, saved(100)))["warmStart"] == {"state": "NotUsed"}


def test_a_first_commit_without_the_chosen_snapshot_is_reported() -> None:
    choice = WarmStartChosen("Checkpoint training/base@latest", "s3://bucket/base", LATEST, 900)
    history = History().configured().append(choice).started().committed(1)
    assert reason(seen("base", None, history))[0] == Reason.RESTORE_MISMATCH
    assert status_of(seen("base", None, history))["warmStart"] == {"state": "NotUsed"}


def test_secrets_stay_in_their_namespace_and_credentials_with_their_server() -> None:
    keys, far = LocalReference("keys"), {"endpoint": "https://other"}

    def access(start: str, found: SourceCheckpoint, **fields: Any) -> dict[str, Any] | str:
        history = History().configured()
        verdict = judge_warm_start(seen(start, found, history, **fields))
        assert verdict is not None
        if verdict.chosen is None:
            return str(verdict.reason)
        status = status_of(seen(start, found, history.append(verdict.chosen), **fields))["warmStart"]
        return {name: status[name] for name in ("endpoint", "credentialsSecret") if name in status}

    granted = Grant("training", ("all",))
    assert access("base", source()) == {}
    assert access("base", source(credentials_secret=keys)) == {"credentialsSecret": {"name": "keys"}}
    assert access("research/base", source(STRANGER, granted, credentials_secret=keys)) == {}
    assert access("research/base", source(STRANGER, granted, credentials_secret=keys, **far)) == "WarmStartNeedsSecret"
    assert access("research/base", source(STRANGER, granted, **far), credentialsSecret={"name": "mine"}) == {
        "endpoint": "https://other",
        "credentialsSecret": {"name": "mine"},
    }


def test_a_url_is_followed_by_the_first_start() -> None:
    it = observed(History().configured(), restore={"startFrom": {"url": "s3://b/base@best", "part": "model"}})
    assert judge_warm_start(it) is None
    assert status_of(it)["warmStart"] == {"state": "Pending", "part": "model"}


def test_a_snapshot_at_which_another_run_begins_is_kept_until_that_has_a_commit() -> None:
    policy = RetentionPolicy(keep_last=1)
    history = saved(100, 200, retention=policy)
    it = quiet(observed(history, retention={"keepLast": 1}))
    assert [each.snapshot for each in store_actions(it) if isinstance(each, Retire)] == [history.id(100)]
    wanted = changed(it, wanted=frozenset({history.id(100)}))
    assert not any(isinstance(each, Retire) for each in store_actions(wanted))
    assert wanted.verdict is not None
    assert wanted.verdict.keep[history.id(100)] == ("WarmStart",)
    given_up = quiet(observed(history.disposed(100, "Retire"), retention={"keepLast": 1}))
    assert [each.snapshot for each in store_actions(given_up) if isinstance(each, Retire)] == [history.id(100)]
    floor = changed(given_up, wanted=frozenset({history.id(100)}))
    assert not any(isinstance(each, Retire) for each in store_actions(floor)), "the promise to another run counts more"
    back = changed(quiet(observed(history.retired(100), retention={"keepLast": 1})), wanted=frozenset(history.ids(100)))
    assert [each.snapshot for each in store_actions(back) if isinstance(each, Reinstate)] == [history.id(100)]


def test_only_runs_of_the_namespace_or_with_a_grant_keep_the_snapshots_of_another() -> None:
    known = WarmStarts()
    base = Checkpoint(STRANGER, "u", 1, "", spec_of(storage={"url": "s3://bucket/base"}))

    def note(key: Key, start: dict[str, Any], **status: Any) -> None:
        pending = {"state": "Pending", "url": "s3://bucket/base", "snapshot": LATEST} | status
        known.note(Checkpoint(key, "u", 1, "", spec_of(restore={"startFrom": start}), {"warmStart": pending}))

    note(Key("training", "a"), {"url": "s3://bucket/base"})
    assert known.wanted(base) == frozenset(), "a URL of another namespace holds nothing there"
    note(Key("training", "b"), {"checkpoint": "research/base"})
    assert known.wanted(base) == {LATEST}
    assert known.waiting_for(STRANGER) == (Key("training", "b"),)
    note(Key("training", "b"), {"checkpoint": "research/base"}, state="Used")
    assert (known.wanted(base), known.waiting_for(STRANGER)) == (frozenset(), ())
    note(Key("research", "c"), {"url": "s3://bucket/base"}, snapshot=BEST)
    assert known.wanted(base) == {BEST}
    known.forget(Key("research", "c"))
    assert known.wanted(base) == frozenset()
