"""The annotation that releases a snapshot from quarantine: what the operator makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from checkpoint_operator.decide import mirrors, plan
from checkpoint_operator.gather.observer import mirror_from
from checkpoint_operator.model.actions import ReleaseQuarantine, ReportMirror, Verify
from checkpoint_operator.model.observed import Observed
from checkpoint_operator.report import events
from checkpoint_sidecar.core.api import RELEASE_ANNOTATION, EventReason
from checkpoint_sidecar.core.policy import RestorePolicy
from model.stories import Stage
from support.builders import History
from support.observations import changed, mirror, observed


def quarantined() -> History:
    history = History().configured(restore=RestorePolicy(max_failures_per_snapshot=1))
    return history.started().committed(100, 200).verified(100, 200).found_damaged(200)


def asked(history: History, request: str = "release-1") -> Observed:
    """A user has annotated the object of step 200."""
    annotated = replace(mirror(history, 200), release_request=request)
    return changed(observed(history), mirrors=(mirror(history, 100), annotated))


def requests(seen: Observed) -> list[ReleaseQuarantine]:
    return [action for action in plan.store_actions(seen) if isinstance(action, ReleaseQuarantine)]


def test_the_annotation_is_read_and_no_longer_than_the_log_takes_it() -> None:
    body = {"metadata": {"name": "run-200-1-abcdefgh", "annotations": {RELEASE_ANNOTATION: "x" * 200}}}
    assert mirror_from(body).release_request == "x" * 128
    assert mirror_from({"metadata": {"name": "run-200-1-abcdefgh"}}).release_request == ""


def test_a_request_is_written_once_and_may_stay_where_it_is() -> None:
    history = quarantined()
    assert requests(asked(history)) == [ReleaseQuarantine(history.id(200), "release-1")]
    history.released(200)
    assert requests(asked(history)) == []
    history.found_damaged(200)
    assert requests(asked(history)) == [], "damage that is found again is not forgotten by an old request"
    assert requests(asked(history, "release-2")) == [ReleaseQuarantine(history.id(200), "release-2")]


def test_a_request_made_before_anything_is_found_is_used_up() -> None:
    history = quarantined()
    early = changed(asked(history), mirrors=(replace(mirror(history, 100), release_request="release-1"),))
    assert requests(early) == [ReleaseQuarantine(history.id(100), "release-1")]
    history.released(100).found_damaged(100)
    assert requests(replace(early, run=history.run)) == []


@pytest.mark.parametrize("purged", [False, True], ids=["being purged", "purged"])
def test_what_is_gone_is_not_released(purged: bool) -> None:
    history = quarantined().retired(200).purge_started(200)
    if purged:
        history.purged(200)
    assert requests(asked(history)) == []


def test_what_is_released_is_verified_anew_told_and_echoed() -> None:
    history = quarantined()
    before = history.snapshot(200).failures
    history.released(200)
    assert (before, history.snapshot(200).failures) == (1, 0)
    assert Verify(history.id(200)) in plan.store_actions(asked(history))
    (told,) = events.for_entries(history.entries[-1:], history.run)
    assert told.reason == EventReason.QUARANTINE_RELEASED
    assert "release-1" in told.message
    (status,) = [
        action.status
        for action in mirrors.mirror_actions(asked(history))
        if isinstance(action, ReportMirror) and action.name.endswith(history.id(200))
    ]
    assert status["lastReleaseRequest"] == "release-1"
    assert {c["type"]: c["reason"] for c in status["conditions"]} == {
        "Committed": "Committed",
        "Verified": "NotVerified",
        "Ready": "Restorable",
    }


def test_training_tries_a_released_snapshot_again_and_damage_that_is_still_there_is_found_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch)
    stage.wants(restore={"maxFailuresPerSnapshot": 1})
    stage.train(2)
    damaged = stage.damage(200)
    assert stage.train().restored == stage.saved(100).id
    assert damaged.failures == 1
    stage.user.releases[damaged.id] = "release-1"
    stage.operate()
    assert (damaged.failures, damaged.releases) == (1, {"release-1"}), "its size shows the damage at once"
    stage.user.releases[damaged.id] = "release-2"
    assert stage.train().restored == stage.saved(100).id


def test_training_restores_a_released_snapshot_that_was_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.wants(restore={"maxFailuresPerSnapshot": 1})
    stage.train(2)
    key = f"{stage.saved(200).path}/__0_0.distcp"
    whole = stage.world.store.get(key, max_bytes=1 << 20).data
    stage.damage(200)
    assert stage.train().restored == stage.saved(100).id
    stage.world.store.corrupt(key, whole)
    stage.world.promises.damage.clear()
    stage.world.promises.visible_damage.clear()
    assert stage.train().restored == stage.saved(100).id, "no user has released it yet"
    stage.user.releases[stage.saved(200).id] = "release-1"
    stage.operate()
    assert stage.train().restored == stage.saved(200).id
