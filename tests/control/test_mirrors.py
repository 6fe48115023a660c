"""The CheckpointSnapshot objects that the operator creates, updates and deletes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from checkpoint_operator.decide.mirrors import mirror_actions
from checkpoint_operator.decide.plan import store_actions as plan
from checkpoint_operator.model.actions import (
    CreateMirror,
    DeleteMirror,
    ReportMirror,
)
from checkpoint_operator.model.observed import Key
from checkpoint_sidecar.core.policy import RetentionPolicy
from checkpoint_sidecar.core.run import Snapshot
from support.builders import OBJECT_UID, OTHER_OWNER
from support.observations import KEY, changed, later, mirror, observed, quiet, saved

KEEP_ONE = RetentionPolicy(keep_last=1, grace_seconds=3600)


def test_every_committed_snapshot_has_an_object_with_the_disposition_of_the_log() -> None:
    history = saved(100, 200).disposed(100, "Hold")
    created = [a.body for a in mirror_actions(observed(history)) if isinstance(a, CreateMirror)]
    assert [(b["metadata"]["name"], b["spec"]["disposition"]) for b in created] == [
        (f"llama-{history.id(200)}", "Auto"),
        (f"llama-{history.id(100)}", "Hold"),
    ]
    assert created[0]["metadata"]["ownerReferences"][0]["uid"] == OBJECT_UID
    assert created[0]["metadata"]["namespace"] == KEY.namespace


def test_the_object_of_a_purged_snapshot_is_removed_and_not_created_again() -> None:
    history = saved(100, 200, retention=KEEP_ONE).retired(100).purge_started(100).purged(100)
    assert mirror_actions(observed(history)) == tuple(
        a for a in mirror_actions(observed(history)) if isinstance(a, CreateMirror) and "200-" in str(a.body)
    )
    gone = mirror(history, 100)
    seen = changed(observed(history), mirrors=(gone,))
    assert DeleteMirror(gone.name, gone.uid) in mirror_actions(seen)


@pytest.mark.parametrize("controller", ["", "a Checkpoint of this name that is gone"], ids=["orphaned", "of another"])
def test_an_object_that_another_checkpoint_has_left_is_replaced_and_its_word_is_not_heard(controller: str) -> None:
    history = saved(100)
    left = replace(mirror(history, 100, disposition="Hold"), controller=controller)
    seen = quiet(changed(observed(history), mirrors=(left,)))
    assert plan(seen) == (), "its disposition is not copied to the log"
    assert mirror_actions(seen) == (DeleteMirror(left.name, left.uid),), "first its name has to be free"
    (created,) = mirror_actions(changed(seen, mirrors=()))
    assert isinstance(created, CreateMirror)
    assert created.body["metadata"]["name"] == left.name


def test_an_object_of_a_snapshot_that_the_log_does_not_know_is_deleted() -> None:
    history, other = saved(100), saved(100, 300)
    stray = mirror(other, 300)
    seen = changed(observed(history), mirrors=(mirror(history, 100), stray))
    assert DeleteMirror(stray.name, stray.uid) in mirror_actions(seen)
    assert mirror_actions(replace(seen, run=None)) == (), "without a log nothing is known of it"


def test_the_status_of_an_object_is_written_only_when_it_differs() -> None:
    history = saved(100)
    seen = changed(observed(history), mirrors=(mirror(history, 100),))
    (report,) = mirror_actions(seen)
    assert isinstance(report, ReportMirror)
    stored = json.loads(json.dumps(report.status))
    same = changed(seen, mirrors=(mirror(history, 100, status=stored),))
    assert mirror_actions(later(same, hours=1)) == ()


def test_the_objects_of_a_run_that_keeps_everything_cost_time_in_proportion_to_their_number() -> None:
    lookups = 0

    class Counting(dict[str, Snapshot]):
        def get(self, *arguments: Any) -> Any:
            nonlocal lookups
            lookups += 1
            return super().get(*arguments)

    history = saved(*range(1, 201))
    seen = observed(history)
    counted = replace(history.run, snapshots=Counting(history.run.snapshots))
    mirrors = tuple(mirror(history, step) for step in range(1, 201))
    assert len(mirror_actions(changed(seen, run=counted, mirrors=mirrors))) == 200
    assert lookups < 10 * 200


@pytest.mark.parametrize(
    "blind",
    [{"run": None}, {"rival": Key("a", "b")}, {"owner": OTHER_OWNER}],
    ids=["the log is unknown", "another Checkpoint has the prefix", "another run has the prefix"],
)
def test_no_object_is_touched_when(blind: dict[str, Any]) -> None:
    history = saved(100, 200, retention=KEEP_ONE).retired(100).purge_started(100).purged(100)
    seen = changed(observed(history), mirrors=(mirror(history, 100),))
    assert mirror_actions(changed(seen, **blind)) == ()
