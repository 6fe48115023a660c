"""The time of a run is divided as far as the log proves it, and never more."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given

from checkpoint_cli.report.facts import RunFacts
from checkpoint_cli.report.goodput import Activity, Goodput, goodput_of
from checkpoint_cli.report.history import AttemptEnd, history_of
from checkpoint_sidecar.core.heartbeat import Heartbeat
from checkpoint_sidecar.core.run import SnapshotState
from core.strategies import stories
from report.reports import eventful_facts, facts_of
from support.builders import History
from support.training_runs import TrainingRun


def goodput(facts: RunFacts) -> Goodput:
    return goodput_of(history_of(facts))


def seconds(history: History, activity: Activity) -> float:
    return goodput(facts_of(history)).seconds[activity]


def test_a_commit_proves_the_training_up_to_its_copy_and_not_beyond() -> None:
    run = TrainingRun().start().train(300)
    found = goodput(facts_of(run.history))
    copies = [snapshot.committed_at - dt.timedelta(seconds=46) for snapshot in run.run.snapshots.values()]
    assert found.segments[0].end == copies[0]
    assert found.seconds[Activity.SAVING] == pytest.approx(3 * 2.4)
    trained = (copies[-1] - run.run.attempts[1].started_at).total_seconds() - 2 * 2.4
    assert found.seconds[Activity.TRAINING] == pytest.approx(trained)


def test_a_restore_lasts_from_the_start_of_the_attempt_to_its_end() -> None:
    run = TrainingRun().start().train(200).start(600).train(100)
    assert seconds(run.history, Activity.RESTORING) == pytest.approx(20 + 95)


def test_training_between_a_commit_and_an_eviction_is_lost_and_the_run_waits_for_its_next_start() -> None:
    run = TrainingRun().start().train(200)
    committed = run.run.snapshots[run.run.newest or ""].committed_at
    run.pause(100).history.evicted()
    evicted = run.run.attempts[1].eviction_at
    assert evicted is not None
    run.start(900).train(100)
    found = goodput(facts_of(run.history))
    assert found.seconds[Activity.WAITING] == pytest.approx(900)
    assert found.seconds[Activity.UNCLEAR] == 0
    # The background upload ran for 43.6 s until the commit: training in that time is lost, too.
    assert found.seconds[Activity.LOST] == pytest.approx((evicted - committed).total_seconds() + 46 - 2.4)


def test_an_attempt_that_saves_on_the_way_out_loses_nothing() -> None:
    run = TrainingRun().start().train(200)
    run.step += 40
    run.pause(300).save("Termination").start(600).train(100)
    found = goodput(facts_of(run.history))
    assert found.seconds[Activity.LOST] == found.seconds[Activity.UNCLEAR] == 0
    assert found.seconds[Activity.WAITING] == pytest.approx(600)
    assert found.seconds[Activity.SAVING] == pytest.approx(3 * 2.4 + 46)


def test_after_a_crash_that_no_entry_records_no_more_than_the_usual_interval_is_unclear() -> None:
    run = TrainingRun().start().train(300).start(4 * 3600)
    interval = 604.0  # 600 s of training, and the operator's check in between
    found = goodput(facts_of(run.history))
    assert 590 < found.seconds[Activity.UNCLEAR] <= interval
    assert found.seconds[Activity.WAITING] > 3 * 3600
    assert found.unclear_steps == pytest.approx(100, abs=3)


def test_after_failing_saves_the_whole_time_to_the_next_start_is_unclear() -> None:
    run = TrainingRun().start().train(300)
    run.history.save_failed(400)
    run.start(4 * 3600)
    assert seconds(run.history, Activity.UNCLEAR) > 4 * 3600


def test_a_rollback_turns_abandoned_training_into_lost_work() -> None:
    run = TrainingRun(retention=None).start().train(500)
    before = goodput(facts_of(run.history))
    assert before.seconds[Activity.LOST] == before.lost_steps == 0
    run.history.rollback(200)
    run.start(600).train(100)
    after = goodput(facts_of(run.history))
    assert after.lost_steps == 300
    assert after.seconds[Activity.LOST] == pytest.approx(3 * 600, abs=20)
    assert history_of(facts_of(run.history)).attempts[1].rollback


def test_a_heartbeat_shows_training_that_is_not_saved_yet() -> None:
    run = TrainingRun().start().train(200)
    facts = facts_of(run.history, after=400)
    assert goodput(facts).seconds[Activity.UNSAVED] < 60
    beat = Heartbeat(1, 250, "")
    alive = replace(facts, heartbeat=beat, heartbeat_at=facts.now)
    assert goodput(alive).seconds[Activity.UNSAVED] > 400
    ended = replace(alive, heartbeat=Heartbeat(1, 250, "", ended=True))
    assert goodput(ended).seconds[Activity.UNSAVED] == 0
    assert goodput(ended).seconds[Activity.LOST] > 400
    complete = replace(alive, heartbeat=Heartbeat(1, 200, "", ended=True))
    assert goodput(complete).seconds[Activity.UNSAVED] == goodput(complete).seconds[Activity.LOST] == 0
    assert history_of(complete).attempts[-1].end is AttemptEnd.COMPLETE
    foreign = replace(alive, heartbeat=Heartbeat(7, 250, ""))
    assert goodput(foreign) == goodput(facts)


def test_a_directory_that_saves_in_many_attempts_trains_between_them() -> None:
    history = History().started().committed(100)
    for step in (200, 300):
        history.wait(minutes=20).started(continues=history.run.newest, candidate="").committed(step)
    found = goodput(facts_of(history))
    assert found.seconds[Activity.WAITING] == found.seconds[Activity.UNCLEAR] == 0
    assert found.seconds[Activity.TRAINING] == found.total


def test_an_attempt_ends_by_the_best_evidence_there_is() -> None:
    ends = [attempt.end for attempt in history_of(eventful_facts()).attempts]
    assert ends == [
        AttemptEnd.LAST_SAVE,
        AttemptEnd.NEXT_START,
        AttemptEnd.NEXT_START,
        AttemptEnd.EVICTION,
        AttemptEnd.RUNNING,
    ]


def test_the_figures_of_an_eventful_run_are_plausible() -> None:
    found = goodput(eventful_facts())
    assert 0.7 < found.share < 0.85
    # 1,700 steps after the rollback to 7000, and 100 of the damaged snapshot.
    assert found.lost_steps == 1800
    assert all(found.seconds[activity] > 0 for activity in Activity)


@given(stories())
def test_every_moment_from_the_first_start_to_the_last_sign_of_life_is_counted_once(history: History) -> None:
    facts = facts_of(history)
    found = goodput(facts)
    life = history_of(facts)
    assert all(earlier.end == later.start for earlier, later in pairwise(found.segments))
    assert all(segment.seconds > 0 for segment in found.segments)
    if found.segments:
        assert found.segments[0].start == life.attempts[0].started_at
        assert found.segments[-1].end == life.alive_at
    assert 0 <= found.share <= 1
    assert found.lost_steps >= 0
    assert found.unclear_steps >= 0


@given(stories())
def test_the_walk_through_the_entries_ends_where_replay_does(history: History) -> None:
    run = history.run
    for life in history_of(facts_of(history)).lives:
        snapshot = run.snapshots[life.snapshot.id]
        retired = snapshot.state in (SnapshotState.RETIRED, SnapshotState.PURGING, SnapshotState.PURGED)
        assert (life.retired_at is not None) is retired
        assert (life.purged_at is not None) is (snapshot.state is SnapshotState.PURGED)
