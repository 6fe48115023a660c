"""Fencing and lineage, told as stories of the real library and operator over one bucket, call by call."""

from __future__ import annotations

import pytest

from checkpoint_sidecar.core.errors import FencedError, PrefixClaimedError, RestoreError
from model import stories
from model.actors import Save
from model.stories import Stage
from support.builders import OTHER_OWNER, OWNER


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_a_writer_that_outlived_its_eviction_publishes_nothing_and_leaves_nothing(stage: Stage) -> None:
    zombie = stage.up_to(stage.trainer(1), "create _log/00000000000000000004")  # its commit, the first after its start
    folder = next(info.key for info in stage.world.store.list("step-")).rpartition("/")[0]
    successor = stage.train(1)
    outcome = stage.outcome(zombie)
    assert isinstance(outcome.error, FencedError)
    assert list(stage.ledger.saved) == successor.saved
    assert list(stage.world.store.list(folder)) == []
    assert stage.shown(100) == successor.saved[0]


def test_a_zombie_whose_commit_is_still_under_way_when_its_successor_starts_loses_the_race(stage: Stage) -> None:
    zombie = stage.up_to(stage.trainer(1), "create _log/00000000000000000004")
    stage.fail(zombie, "the request is late")
    successor = stage.train(1)
    (late,) = stage.world.late
    with pytest.raises(Exception, match="taken"):
        late.land()
    assert isinstance(stage.outcome(zombie).error, FencedError)
    assert list(stage.ledger.saved) == successor.saved


def test_of_two_pods_of_one_rank_one_trains(stage: Stage) -> None:
    stage.train(1)
    pods = [stage.up_to(stage.trainer(1), "create _log") for _ in range(2)]
    for pod in pods:
        stage.go(pod, 1)
    stage.go(stage.up_to(pods[1], "create _log"), 1)  # it lost, and takes the next number
    outcomes = [stage.outcome(pod) for pod in pods]
    assert sorted(o.attempt for o in outcomes) == [2, 3]
    fenced, trained = sorted(outcomes, key=lambda o: o.attempt)
    assert isinstance(fenced.error, FencedError)
    assert fenced.saved == []
    assert (trained.error, len(trained.saved)) == (None, 1)


def test_a_rollback_to_an_older_step_supersedes_what_came_after_it(stage: Stage) -> None:
    stage.train(3)
    abandoned = [stage.saved(step).id for step in (200, 300)]
    stage.rolls_back(100, "first")
    outcome = stage.train(1)
    assert outcome.restored == stage.saved(100).id
    assert [s.id for s in stage.ledger.lineage()] == [*outcome.saved, stage.saved(100).id]
    assert stage.train().restored == outcome.saved[0]
    assert all(stage.ledger.saved[each].state == "Live" for each in abandoned)


def test_of_two_rollbacks_each_acts_once_and_the_later_one_last(stage: Stage) -> None:
    stage.train(3)
    stage.rolls_back(200, "first")
    first = stage.up_to(stage.trainer(1), "upload")
    stage.rolls_back(100, "second")
    branch = stage.outcome(first)
    assert (branch.restored, stage.ledger.consumed) == ("200-1-" + branch.restored[-8:], {"first"})
    outcome = stage.train(1)
    assert (outcome.restored, stage.ledger.consumed) == (stage.saved(100).id, {"first", "second"})
    stage.operate()
    assert stage.train().restored == outcome.saved[0]


def test_a_parent_that_was_retired_and_purged_still_links_its_child_to_its_ancestors(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "keepEverySteps": 1000, "gracePeriod": "0s"})
    stage.train([Save(1000), Save(100), Save(100)])
    stage.operate()
    assert [(s.step, s.state) for s in stage.ledger.lineage()] == [(1200, "Live"), (1100, "Purged"), (1000, "Live")]
    stage.damage(1200)
    assert stage.train().restored == stage.saved(1000).id


def test_a_retired_parent_comes_back_when_nothing_else_is_left(stage: Stage) -> None:
    stage.wants(retention={"keepLast": 1, "gracePeriod": "1h"})
    stage.train(2)
    stage.operate()
    assert stage.saved(100).state == "Retired"
    stage.damage(200)
    assert stage.train().restored == stage.saved(100).id
    assert stage.saved(100).state == "Live"


def test_a_snapshot_that_failed_two_restores_is_not_tried_a_third_time(stage: Stage) -> None:
    stage.train(2)
    damaged = stage.damage(200)
    assert [stage.train().skipped for _ in range(3)] == [[damaged.id], [damaged.id], []]
    assert damaged.failures == 2


def test_an_attempt_that_died_while_restoring_is_no_evidence(stage: Stage) -> None:
    stage.train(2)
    for _ in range(3):
        stage.up_to(stage.trainer(), "read step-200").kill()
    assert stage.saved(200).failures == 0
    assert stage.ledger.highest is not None
    assert stage.ledger.highest.in_use == stage.saved(200).id
    assert stage.train().restored == stage.saved(200).id


def test_an_attempt_that_died_before_its_first_commit_orphans_nothing(stage: Stage) -> None:
    stage.train(2)
    stage.up_to(stage.trainer(1), "create _log/00000000000000000008").kill()  # its commit, after start and restore
    outcome = stage.train(1)
    assert outcome.restored == stage.saved(200).id
    assert [s.step for s in stage.ledger.lineage()] == [300, 200, 100]


def test_a_snapshot_of_another_run_is_no_ones_without_a_take_over(stage: Stage) -> None:
    stage.train(1)
    assert isinstance(stage.train(1, owner=OTHER_OWNER).error, PrefixClaimedError)
    stage.operate(user=stage.other)
    assert stage.ledger.owner == str(OWNER)

    running = stage.up_to(stage.trainer(1), "create _log/00000000000000000007")  # its commit, after start and restore
    stage.other.takes_over(OWNER, stage.world)
    stage.operate(user=stage.other)
    assert isinstance(stage.outcome(running).error, FencedError)
    assert isinstance(stage.train(1).error, PrefixClaimedError)
    assert stage.train(1, owner=OTHER_OWNER).restored == stage.saved(100).id


def test_when_everything_is_damaged_training_stops_and_says_so(stage: Stage) -> None:
    stage.train(2)
    for step in (100, 200):
        stage.damage(step)
    outcome = stage.train(1)
    assert isinstance(outcome.error, RestoreError)
    assert (outcome.anew, outcome.saved) == (False, [])


STORIES = (
    stories.a_snapshot_in_use_outlives_the_request_it_was_restored_for,
    stories.the_newest_verified_snapshot_stays_while_the_newer_one_cannot_be_checked,
    stories.a_replaced_snapshot_stays_until_its_replacement_is_verified,
    stories.of_two_publishers_the_one_that_writes_last_corrects_itself,
    stories.of_two_operators_that_remove_one_pointer_neither_fails,
    stories.pointers_follow_a_rollback_to_another_branch,
    stories.an_attempt_that_commits_while_it_is_taken_for_dead_is_not_fenced,
    stories.nothing_is_deleted_a_moment_before_its_grace_period_ends,
    stories.a_purge_ends_where_the_run_changes_hands,
    stories.a_purge_ends_where_its_operator_learns_of_the_change_of_hands,
    stories.no_stock_pointer_shows_what_is_being_deleted,
    stories.nothing_is_deleted_early_by_a_clock_that_was_set_back,
    stories.a_prefix_that_was_emptied_is_not_a_new_run,
    stories.only_a_marker_tells_that_a_log_is_gone,
    stories.each_request_to_take_a_run_over_acts_once_any_number_of_times,
    stories.what_others_wrote_outlives_the_run_and_its_deletion,
    stories.a_deletion_that_was_interrupted_is_ended_before_the_next_run_begins,
    stories.a_log_that_is_gone_is_written_no_more,
    stories.a_start_whose_log_vanishes_does_not_begin_at_step_0,
    stories.one_bad_transfer_is_no_evidence,
    stories.two_operators_that_see_one_damage_count_it_once,
    stories.an_operator_rests_between_two_looks_at_damage,
    stories.a_second_look_clears_what_is_whole_after_all,
    stories.nothing_goes_before_one_that_stays_was_read_back,
    stories.what_is_released_from_quarantine_has_to_prove_itself_again,
)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__.replace("_", " "))
def test_the_story_ends_well(story: stories.Story, stage: Stage) -> None:
    story(stage)


def test_a_killed_actor_makes_no_further_call(stage: Stage) -> None:
    actor = stage.up_to(stage.trainer(1), "upload")
    before = [info.key for info in stage.world.store.list()]
    actor.kill()
    assert (actor.ended, actor.error) == (True, None)
    assert [info.key for info in stage.world.store.list()] == before
