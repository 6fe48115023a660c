"""What the operator decides to do, from nothing but what it observed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from checkpoint_operator.decide.appends import entry_for
from checkpoint_operator.decide.mirrors import mirror_actions
from checkpoint_operator.decide.plan import MAX_RETIREMENTS, MAX_VERIFICATIONS, next_pass, shown_after, to_read_back
from checkpoint_operator.decide.plan import store_actions as plan
from checkpoint_operator.model.actions import (
    Adopt,
    Claim,
    Compact,
    Configure,
    CreateMirror,
    NoticeEviction,
    PublishPointer,
    Purge,
    RecordCheck,
    Reinstate,
    ReportMirror,
    RequestRollback,
    RequestSave,
    Retire,
    SetDisposition,
    Verify,
)
from checkpoint_operator.model.observed import Key, Observed, ReadBack, ScrubFinding, StoreFault
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.compaction import EntryRange
from checkpoint_sidecar.core.log import PodIdentity, SnapshotVerified
from checkpoint_sidecar.core.pointers import published_steps
from checkpoint_sidecar.core.policy import RetentionPolicy, SavePolicy
from checkpoint_sidecar.core.purging import PURGES_AT_ONCE
from checkpoint_sidecar.core.run import Snapshot
from support.builders import OBJECT_UID, OTHER_OWNER, OWNER, POD, History
from support.observations import changed, later, mirror, observed, pod, quiet, saved

KEEP_ONE = RetentionPolicy(keep_last=1, grace_seconds=3600)
KEEP_ONE_SPEC = {"keepLast": 1, "gracePeriod": "1h"}


def ready_of(seen: Observed) -> tuple[str, str]:
    """The condition Ready of the only object of a snapshot."""
    (report,) = (action for action in mirror_actions(seen) if isinstance(action, ReportMirror))
    ready = next(c for c in report.status["conditions"] if c["type"] == "Ready")
    return ready["status"], ready["reason"]


def passed(snapshot: Snapshot, judged: int) -> ScrubFinding:
    return ScrubFinding(SnapshotVerified(snapshot.id, "Checksums", passed=True), judged)


def damaged(snapshot: Snapshot, judged: int) -> ScrubFinding:
    return ScrubFinding(SnapshotVerified(snapshot.id, "Checksums", passed=False, evidence="ChecksumMismatch"), judged)


def kinds(actions: tuple[object, ...]) -> list[str]:
    return [type(action).__name__ for action in actions]


# The owner of the prefix


def test_an_unclaimed_prefix_is_claimed_and_nothing_else_is_done_yet() -> None:
    assert plan(observed(History(owner=None))) == (Claim(),)


def test_a_claimed_prefix_is_configured_next() -> None:
    seen = observed(History(), generation=3)
    assert plan(seen) == (Configure(OBJECT_UID, 3, seen.policy),)  # type: ignore[arg-type]


def test_the_prefix_of_another_run_is_left_alone() -> None:
    assert plan(observed(History(owner=OTHER_OWNER))) == ()


def test_the_prefix_of_another_run_is_adopted_when_the_user_names_that_run() -> None:
    storage = {"url": "s3://bucket/run", "takeOverFrom": str(OTHER_OWNER)}
    assert plan(observed(History(owner=OTHER_OWNER), storage=storage)) == (Adopt(str(OTHER_OWNER)),)


def test_a_take_over_acts_once_even_if_the_other_side_takes_the_run_back() -> None:
    history = History(owner=OTHER_OWNER).adopted(OWNER).adopted(OTHER_OWNER)
    storage = {"url": "s3://bucket/run", "takeOverFrom": str(OTHER_OWNER)}
    assert plan(observed(history, storage=storage)) == ()


@pytest.mark.parametrize(
    ("unset_at", "acts"),
    [
        pytest.param(0, False, id="not known to have been unset"),
        pytest.param(5, False, id="unset before it acted"),
        pytest.param(6, True, id="unset since it acted"),
    ],
)
def test_a_take_over_acts_again_only_if_the_field_was_unset_since_it_acted(unset_at: int, acts: bool) -> None:
    history = History(owner=OTHER_OWNER).adopted(OWNER, request="uid/6").adopted(OTHER_OWNER)
    adopt = Adopt(str(OTHER_OWNER), "uid/8", unset_at)
    assert (entry_for(adopt, history.run, owner=OWNER, now=history.now) is not None) is acts


def test_a_take_over_that_names_another_owner_does_nothing() -> None:
    storage = {"url": "s3://bucket/run", "takeOverFrom": "cluster-z/training/llama"}
    assert plan(observed(History(owner=OTHER_OWNER), storage=storage)) == ()


def test_an_overlapping_prefix_of_an_older_checkpoint_is_left_alone() -> None:
    assert plan(changed(observed(History(owner=None)), rival=Key("training", "older"))) == ()


# Not knowing


@pytest.mark.parametrize(
    "blind",
    [
        pytest.param({"run": None}, id="the log was not read"),
        pytest.param({"now": None}, id="the store's clock is not known"),
        pytest.param({"policy": None}, id="the spec makes no sense"),
        pytest.param({"fault": StoreFault(Reason.STORE_UNAVAILABLE, "down")}, id="the store fails"),
    ],
)
def test_nothing_is_done_to_a_run_about_which_something_is_not_known(blind: dict[str, Any]) -> None:
    history = saved(100, 200, retention=KEEP_ONE).retired(100)
    assert plan(later(changed(observed(history, retention=KEEP_ONE_SPEC), **blind), hours=2)) == ()


def test_a_critical_entry_of_an_unknown_kind_forbids_everything() -> None:
    seen = observed(saved(100))
    assert seen.run is not None
    assert plan(replace(seen, run=replace(seen.run, unknown_critical="FutureKind"))) == ()


# Configuration


def test_a_changed_spec_is_configured_before_anything_is_retired_under_the_old_one() -> None:
    history = saved(100, 200, retention=KEEP_ONE)
    assert kinds(plan(observed(history, generation=2, retention={"keepLast": 2}))) == ["Configure"]


def test_a_stale_generation_configures_nothing() -> None:
    history = History().configured(generation=5)
    assert plan(observed(history, generation=4)) == ()


# Verification


def test_the_newest_unverified_snapshots_are_verified_first_and_only_some_per_round() -> None:
    history = History().configured().started().committed(100, 200, 300, 400, 500, 600).verified(600)
    assert plan(quiet(observed(history))) == tuple(Verify(i) for i in history.ids(500, 400, 300, 200))
    assert MAX_VERIFICATIONS == 4


def test_a_snapshot_with_evidence_against_it_is_not_checked_again() -> None:
    history = History().configured().started().committed(100).found_damaged(100)
    assert plan(quiet(observed(history))) == ()


def pointers(seen: Observed) -> list[PublishPointer]:
    return [action for action in plan(seen) if isinstance(action, PublishPointer)]


def test_what_stays_is_read_back_newest_first_until_its_checksums_were_compared() -> None:
    history = saved(100, 200, 300, 400, retention=RetentionPolicy(keep_last=3)).verified(300, level="Checksums")
    assert [s.step for s in to_read_back(observed(history))] == [400, 200]


def test_what_is_under_suspicion_is_read_back_first_and_what_is_quarantined_is_not() -> None:
    history = saved(100, 200, 300).found_damaged(100, 200, 200)
    assert [s.step for s in to_read_back(observed(history))] == [100, 300]


def test_nothing_of_a_run_that_is_not_ours_is_read_back() -> None:
    assert to_read_back(observed(saved(100).adopted())) == ()


def test_what_was_found_is_written_into_the_log_before_anything_is_retired_on_account_of_it() -> None:
    history = saved(100, 200, retention=KEEP_ONE)
    check = SnapshotVerified(history.id(200), "Checksums", passed=False, evidence="ChecksumMismatch")
    seen = replace(
        quiet(observed(history, retention=KEEP_ONE_SPEC)), read_back=ReadBack(findings=(ScrubFinding(check, 0),))
    )
    assert plan(seen)[0] == RecordCheck(ScrubFinding(check, 0))


@pytest.mark.parametrize(
    ("tell", "finding"),
    [
        pytest.param(
            lambda: saved(100).verified(100, level="Checksums"),
            lambda s: passed(s, 0),
            id="it was read",
        ),
        pytest.param(lambda: saved(100).found_damaged(100), lambda s: damaged(s, 0), id="it is known"),
        pytest.param(lambda: saved(100, 200).retired(100), lambda s: damaged(s, 0), id="it is retired"),
        pytest.param(
            lambda: saved(100).found_damaged(100).released(100),
            lambda s: damaged(s, 0),
            id="it was released from quarantine since",
        ),
    ],
)
def test_a_finding_is_not_written_down_when(
    tell: Callable[[], History], finding: Callable[[Snapshot], ScrubFinding]
) -> None:
    history = tell()
    seen = replace(quiet(observed(history)), read_back=ReadBack(findings=(finding(history.snapshot(100)),)))
    assert "RecordCheck" not in kinds(plan(seen))


def test_the_stock_pointer_of_every_step_is_published_until_it_was_seen_to_be_right() -> None:
    history = saved(100, 200)
    newest, oldest = (PublishPointer(step, history.id(step)) for step in (200, 100))
    assert plan(observed(history)) == (newest, oldest)
    assert plan(changed(observed(history), pointers=shown_after({}, [newest]))) == (oldest,)
    assert plan(quiet(observed(history))) == ()


def test_the_stock_pointers_follow_a_rollback_to_the_other_branch() -> None:
    history = saved(100, 200, 300)
    shown = published_steps(history.run)
    history.rollback(100).started().restored().committed(200)
    seen = changed(observed(history), pointers=shown)
    assert pointers(seen) == [PublishPointer(200, history.id(200)), PublishPointer(300, "")]
    assert shown_after(shown, pointers(seen)) == {200: history.id(200), 100: history.id(100)}


def test_the_stock_pointer_of_a_retired_snapshot_is_removed_and_comes_back_with_it() -> None:
    history = saved(100, 200)
    shown = published_steps(history.run)
    removed = pointers(changed(observed(history.retired(100)), pointers=shown))
    assert removed == [PublishPointer(100, "")]
    seen = changed(observed(history.reinstated(100)), pointers=shown_after(shown, removed))
    assert pointers(seen) == [PublishPointer(100, history.id(100))]


def test_the_stock_pointer_of_a_quarantined_snapshot_is_removed() -> None:
    history = saved(100, 200)
    seen = changed(observed(history), pointers=published_steps(history.run))
    history.found_damaged(200, 200)
    assert pointers(replace(seen, run=history.run)) == [PublishPointer(200, "")]


# Retention


def test_what_the_policy_does_not_keep_is_retired() -> None:
    history = saved(100, 200, 300, retention=KEEP_ONE)
    assert plan(quiet(observed(history, retention=KEEP_ONE_SPEC))) == tuple(Retire(i) for i in history.ids(100, 200))


def test_nothing_is_retired_while_nothing_is_verified() -> None:
    history = History().configured(retention=KEEP_ONE).started().committed(100, 200, 300)
    assert kinds(plan(quiet(observed(history, retention=KEEP_ONE_SPEC)))) == ["Verify"] * 3


@pytest.mark.parametrize(
    ("waited", "expected"),
    [pytest.param(59, [], id="within the grace"), pytest.param(61, ["Purge"], id="after the grace")],
)
def test_a_retired_snapshot_is_purged_after_the_grace(waited: int, expected: list[str]) -> None:
    history = saved(100, 200, retention=KEEP_ONE).retired(100)
    seen = later(quiet(observed(history, retention=KEEP_ONE_SPEC)), minutes=waited)
    assert kinds(plan(seen)) == expected


def test_the_next_pass_is_when_the_first_grace_period_is_over() -> None:
    history = saved(100, 200, 300, retention=KEEP_ONE).retired(100).retired(200)
    assert next_pass(observed(history)) == 3600 - 60


def test_a_begun_purge_continues_without_any_policy() -> None:
    history = saved(100, 200, retention=KEEP_ONE).retired(100).purge_started(100).configured(retention=None)
    assert plan(quiet(observed(history))) == (Purge(history.id(100)),)


def test_a_retired_snapshot_that_the_policy_wants_back_is_reinstated_and_not_purged() -> None:
    history = saved(100, 200, retention=KEEP_ONE).retired(100).configured(retention=RetentionPolicy(keep_last=2))
    seen = later(quiet(observed(history, retention={"keepLast": 2})), hours=9)
    assert plan(seen) == (Reinstate(history.id(100)),)


def test_suspend_stops_retiring_reinstating_and_purging_but_not_the_rest() -> None:
    history = saved(100, 200, 300, retention=KEEP_ONE).retired(100).committed(400)
    seen = later(quiet(observed(history, retention=KEEP_ONE_SPEC, suspend=True)), hours=2)
    assert plan(seen) == (Verify(history.id(400)),)


def test_a_dry_run_retires_and_purges_nothing() -> None:
    history = saved(100, 200, 300, retention=RetentionPolicy(keep_last=1, dry_run=True, grace_seconds=0))
    assert plan(quiet(observed(history, retention={"keepLast": 1, "dryRun": True, "gracePeriod": "0s"}))) == ()


def test_where_nothing_can_be_deleted_nothing_is_announced_and_the_rest_continues() -> None:
    history = saved(100, 200, 300, retention=KEEP_ONE).retired(100)
    history.started().restored()
    seen = changed(later(observed(history, retention=KEEP_ONE_SPEC), days=1), refusal="object lock")
    seen = changed(seen, pointers={step: history.id(step) for step in (100, 200, 300)})
    assert kinds(plan(seen)) == ["PublishPointer", "Retire"]


def test_a_wrong_policy_deletes_slowly() -> None:
    steps = range(100, 3100, 100)
    history = saved(*steps, retention=RetentionPolicy(keep_last=1, grace_seconds=0))
    seen = quiet(observed(history, retention={"keepLast": 1, "gracePeriod": "0s"}))
    assert kinds(plan(seen)) == ["Retire"] * MAX_RETIREMENTS
    history.retired(*steps[:10])
    seen = quiet(observed(history, retention={"keepLast": 1, "gracePeriod": "0s"}))
    assert kinds(plan(seen)).count("Purge") == PURGES_AT_ONCE


def test_purges_keep_their_pace_however_often_something_wakes_the_pass() -> None:
    steps = range(100, 2100, 100)
    history = saved(*steps, retention=RetentionPolicy(keep_last=1, grace_seconds=0)).retired(*steps[:-1])
    history.wait(hours=1)
    for step in steps[:PURGES_AT_ONCE]:
        history.wait(minutes=-1).purge_started(step).wait(minutes=-1).purged(step)
    seen = quiet(observed(history, retention={"keepLast": 1, "gracePeriod": "0s"}))
    for seconds in (0, 1, 29):
        assert "Purge" not in kinds(plan(later(seen, seconds=seconds)))
    assert next_pass(later(seen, seconds=1)) == 29
    assert kinds(plan(later(seen, seconds=30))).count("Purge") == PURGES_AT_ONCE


def test_a_purge_that_has_begun_continues_whatever_the_pace() -> None:
    steps = range(100, 2100, 100)
    history = saved(*steps, retention=RetentionPolicy(keep_last=1, grace_seconds=0)).retired(*steps[:-1])
    for step in steps[:PURGES_AT_ONCE]:
        history.wait(minutes=-1).purge_started(step)
    seen = quiet(observed(history, retention={"keepLast": 1, "gracePeriod": "0s"}))
    assert [a.snapshot for a in plan(seen) if isinstance(a, Purge)] == [history.id(s) for s in steps[:PURGES_AT_ONCE]]


# Compaction


def test_every_200_entries_are_compacted_once_and_a_backlog_in_small_steps() -> None:
    history = saved(100)
    while history.run.head < 1100:
        history.verified(100)
    assert plan(quiet(observed(history))) == tuple(Compact(EntryRange(i + 1, i + 200)) for i in (0, 200, 400, 600))
    done = frozenset(EntryRange(i + 1, i + 200) for i in range(0, 1000, 200))
    grown = EntryRange(1, 1000), EntryRange(1001, 1100)
    assert plan(changed(quiet(observed(history)), compactions=done)) == tuple(map(Compact, grown))
    assert plan(changed(quiet(observed(history)), compactions=done.union(grown))) == ()


# Requests


def test_a_save_request_goes_to_the_running_attempt_until_a_commit_answers_it() -> None:
    history = History().configured().started()
    asked = {"request": "now-1"}
    assert plan(observed(history, save=asked)) == (RequestSave("now-1"),)
    history.save_requested("now-1")
    assert plan(observed(history, save=asked)) == ()
    history.started()
    assert plan(observed(history, save=asked)) == (RequestSave("now-1"),), "the next attempt never heard of it"
    history.committed(100, save_request="now-1").verified(100)
    assert plan(quiet(observed(history, save=asked))) == ()


def test_a_save_request_waits_for_an_attempt() -> None:
    assert plan(observed(History().configured(), save={"request": "now-1"})) == ()


def rollback_to(snapshot: str) -> dict[str, Any]:
    return {"rollback": {"request": "back-1", "to": "Snapshot", "snapshot": snapshot}}


def test_a_rollback_is_requested_once_per_id() -> None:
    history = saved(100, 200)
    restore = rollback_to(history.id(100))
    assert plan(quiet(observed(history, restore=restore))) == (RequestRollback("back-1", history.id(100)),)
    history.rollback(100, request="back-1")
    assert plan(quiet(observed(history, restore=restore))) == ()
    history.started().restored().committed(150).verified(150)
    assert plan(quiet(observed(history, restore=restore))) == ()


def test_a_rollback_that_a_later_request_replaced_does_not_come_back() -> None:
    history = saved(100, 200).rollback(100, request="back-1").rollback(200, request="by hand")
    seen = observed(history, restore=rollback_to(history.id(100)))
    assert plan(quiet(seen)) == ()


def test_a_rollback_to_what_does_not_exist_is_not_requested() -> None:
    assert plan(quiet(observed(saved(100), restore=rollback_to("900-1-aaaaaaaa")))) == ()


def test_a_rollback_to_the_best_means_the_first_rule_of_keep_best() -> None:
    best = {"keepBest": [{"metric": "loss"}], "gracePeriod": "1h"}
    history = saved(retention=KEEP_ONE).configured(retention=policy_of_retention(best))
    for step, loss in ((100, "2.5"), (200, "1.5"), (300, "nan"), (400, "1.9")):
        history.committed(step, metrics={"loss": loss}).verified(step)
    seen = quiet(observed(history, retention=best, restore={"rollback": {"request": "back-1", "to": "Best"}}))
    assert RequestRollback("back-1", history.id(200)) in plan(seen)


def policy_of_retention(retention: dict[str, Any]) -> RetentionPolicy:
    policy = observed(None, retention=retention).policy
    assert policy is not None
    assert policy.retention is not None
    return policy.retention


# Dispositions


def test_the_users_word_on_a_snapshot_is_copied_to_the_log() -> None:
    history = saved(100, 200)
    seen = changed(observed(history), mirrors=(mirror(history, 100, disposition="Hold"),))
    assert plan(quiet(seen)) == (SetDisposition(history.id(100), "Hold"),)
    history.disposed(100, "Hold")
    assert plan(quiet(changed(observed(history), mirrors=seen.cluster.mirrors))) == ()


@pytest.mark.parametrize("step", [200, 100], ids=["the newest verified", "the one in use"])
def test_retiring_by_hand_is_refused_for(step: int) -> None:
    history = saved(100, 200, retention=RetentionPolicy(keep_last=9)).rollback(100).started().restored()
    seen = changed(observed(history, retention={"keepLast": 9}), mirrors=(mirror(history, step, disposition="Retire"),))
    assert plan(quiet(seen)) == ()
    assert ready_of(seen) == ("True", "RetireRefused")


def test_retiring_by_hand_is_refused_until_there_is_a_retention_policy() -> None:
    history = saved(100, 200)
    seen = changed(observed(history), mirrors=(mirror(history, 100, disposition="Retire"),))
    assert plan(quiet(seen)) == ()
    assert ready_of(seen) == ("True", "RetireRefused")
    history.configured(retention=RetentionPolicy(keep_every_steps=100))
    later_on = changed(observed(history, retention={"keepEverySteps": 100}), mirrors=seen.cluster.mirrors)
    assert plan(quiet(later_on)) == (SetDisposition(history.id(100), "Retire"),)
    history.disposed(100, "Retire")
    assert kinds(plan(quiet(replace(later_on, run=history.run)))) == ["Retire"]


def test_retiring_by_hand_what_a_floor_keeps_says_so() -> None:
    history = saved(100, 200, 300, retention=RetentionPolicy(keep_last=2)).disposed(200, "Retire")
    seen = changed(observed(history, retention={"keepLast": 2}), mirrors=(mirror(history, 200, disposition="Retire"),))
    assert Retire(history.id(200)) not in plan(quiet(seen))
    assert ready_of(seen) == ("True", "RetireRefused")


# Evictions


def test_a_leaving_pod_of_the_running_attempt_is_an_eviction_told_once() -> None:
    history = History().configured().started()
    seen = changed(observed(history), pods=(pod(leaving="EvictionByEvictionAPI"),))
    assert plan(seen) == (NoticeEviction(1, POD, "EvictionByEvictionAPI"),)
    history.evicted()
    assert plan(changed(observed(history), pods=seen.cluster.pods)) == ()


@pytest.mark.parametrize(
    "leaving",
    [
        pytest.param(pod(uid="another", leaving="Deleted"), id="the pod of an earlier attempt"),
        pytest.param(pod(phase="Succeeded", leaving="Deleted"), id="a pod that ended well"),
        pytest.param(pod(), id="a pod that stays"),
    ],
)
def test_no_eviction_is(leaving: Any) -> None:
    assert plan(changed(observed(History().configured().started()), pods=(leaving,))) == ()


def test_of_a_large_attempt_unlisted_pods_count_if_they_existed_when_it_started() -> None:
    history = History().configured().started(pods=tuple(PodIdentity(f"p-{n}", f"uid-{n}") for n in range(16)))
    old = pod("p-40", "uid-40", leaving="Deleted")
    young = pod("p-41", "uid-41", leaving="Deleted", created=history.now.replace(year=2027))
    assert plan(changed(observed(history), pods=(young,))) == ()
    assert kinds(plan(changed(observed(history), pods=(young, old)))) == ["NoticeEviction"]


def test_a_snapshot_that_cannot_be_verified_for_a_reason_of_its_own_keeps_no_other_one_waiting() -> None:
    history = History().configured().started().committed(*range(100, 700, 100))
    seen = quiet(observed(history))
    new = history.ids(600, 500, 400, 300)
    assert plan(seen) == tuple(map(Verify, new))
    why = dict.fromkeys(new, "it has format 2, this version reads 1")
    seen = changed(seen, unverifiable=why)
    assert plan(seen) == tuple(map(Verify, history.ids(200, 100)))
    assert not {s.id for s in to_read_back(seen)} & set(new)
    created = {a.body["metadata"]["name"]: a.status for a in mirror_actions(seen) if isinstance(a, CreateMirror)}
    verified = next(c for c in created[f"llama-{new[0]}"]["conditions"] if c["type"] == "Verified")
    assert (verified["status"], verified["reason"]) == ("Unknown", "NotVerified")
    assert verified["message"] == why[new[0]]


def test_saves_by_steps_only_are_planned_as_well() -> None:
    history = History().configured(save=SavePolicy(every_steps=10, every_seconds=None))
    assert plan(observed(history, save={"everySteps": 10, "every": "0s"})) == ()
