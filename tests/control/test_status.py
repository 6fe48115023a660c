"""What a Checkpoint's status says about a run."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest

from checkpoint_operator.model.observed import Key, Observed, ReadBack, RunProgress, StoreFault
from checkpoint_operator.report.status import status_of
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.log import PodIdentity
from checkpoint_sidecar.core.policy import RestorePolicy, RetentionPolicy, SavePolicy
from support.builders import OTHER_OWNER, OWNER, POD, History
from support.observations import KEY, changed, later, observed, pod


def condition(seen: Observed, kind: str) -> tuple[str, str]:
    found = next(c for c in status_of(seen)["conditions"] if c["type"] == kind)
    return found["status"], found["reason"]


def message_of(seen: Observed, kind: str) -> str:
    (found,) = (c["message"] for c in status_of(seen)["conditions"] if c["type"] == kind)
    return str(found)


def training(*steps: int) -> History:
    return History().configured().started().committed(*steps).verified(*steps)


# Ready, StorageAvailable, Stalled


def test_ready_needs_no_snapshot() -> None:
    seen = observed(History().configured())
    assert condition(seen, "Ready") == ("True", "Configured")
    assert condition(seen, "StorageAvailable") == ("True", "Available")
    assert condition(seen, "Stalled") == ("False", "NotStalled")


def test_ready_waits_for_the_policy_of_this_generation() -> None:
    assert condition(observed(History().configured(), generation=2), "Ready")[0] == "False"


FAULTS = {
    "a store that is down": (
        {"fault": StoreFault(Reason.STORE_UNAVAILABLE, "timeout"), "run": None},
        ("False", "StoreUnavailable"),
        ("False", "StoreUnavailable"),
        "False",
    ),
    "a store without conditional writes": (
        {"fault": StoreFault(Reason.NO_CONDITIONAL_WRITE, "no", stalled=True), "run": None},
        ("False", "NoConditionalWrite"),
        ("False", "NoConditionalWrite"),
        "True",
    ),
    "another Checkpoint with an overlapping prefix": (
        {"rival": Key("training", "older"), "run": None},
        ("False", "PrefixClaimed"),
        ("Unknown", "StoreUnavailable"),
        "True",
    ),
    "a prefix of another run": (
        {"owner": OTHER_OWNER},
        ("False", "PrefixClaimed"),
        ("True", "Available"),
        "True",
    ),
}


@pytest.mark.parametrize(("changes", "ready", "storage", "stalled"), FAULTS.values(), ids=FAULTS.keys())
def test_conditions_name(
    changes: dict[str, Any], ready: tuple[str, str], storage: tuple[str, str], stalled: str
) -> None:
    seen = changed(observed(History().configured()), **changes)
    assert condition(seen, "Ready") == ready
    assert condition(seen, "StorageAvailable") == storage
    assert condition(seen, "Stalled")[0] == stalled


def test_a_newer_critical_entry_asks_for_an_upgrade() -> None:
    seen = observed(History().configured())
    assert seen.run is not None
    seen = replace(seen, run=replace(seen.run, unknown_critical="FutureKind"))
    assert condition(seen, "Stalled") == ("True", "UpgradeRequired")


def test_what_the_log_told_last_stays_while_the_log_cannot_be_read() -> None:
    before = status_of(observed(training(100)))
    blind = replace(observed(None, status=before), fault=StoreFault(Reason.STORE_UNAVAILABLE, "timeout"))
    after = status_of(blind)
    assert {key: after[key] for key in after if key != "conditions"} == {
        key: before[key] for key in before if key != "conditions"
    }
    assert after["conditions"] != before["conditions"]


def test_the_status_of_a_prefix_that_is_not_ours_tells_whose_it_is_and_no_more() -> None:
    status = status_of(observed(History(owner=OTHER_OWNER).started().committed(100)))
    assert status["claimedBy"] == str(OTHER_OWNER)
    assert "latest" not in status


# No writes for nothing


@pytest.mark.parametrize(
    "history",
    [History(), History().configured(), training(100, 200), training(100).evicted().started().restored()],
    ids=["claimed", "configured", "training", "restarted"],
)
def test_nothing_changes_by_the_clock_or_by_the_way_through_the_api_server(history: History) -> None:
    status = json.loads(json.dumps(status_of(observed(history))))
    assert status_of(later(observed(history, status=status), days=3)) == status


def test_an_error_whose_text_differs_from_try_to_try_is_written_once() -> None:
    first = status_of(replace(observed(None), fault=StoreFault(Reason.STORE_UNAVAILABLE, "request 1 failed")))
    again = replace(observed(None, status=first), fault=StoreFault(Reason.STORE_UNAVAILABLE, "request 2 failed"))
    assert status_of(later(again, hours=1)) == first


def test_the_transition_time_moves_only_when_the_status_does() -> None:
    first = status_of(replace(observed(History().configured()), fault=StoreFault(Reason.ACCESS_DENIED, "no")))
    other = replace(observed(History().configured(), status=first), fault=StoreFault(Reason.BUCKET_NOT_FOUND, "no"))
    second = status_of(later(other, hours=1))
    times = [{c["type"]: c["lastTransitionTime"] for c in s["conditions"]} for s in (first, second)]
    assert times[0] == times[1]
    third = status_of(later(observed(History().configured(), status=second), hours=2))
    moved = {
        c["type"]
        for c, old in zip(third["conditions"], second["conditions"], strict=True)
        if c["lastTransitionTime"] != old["lastTransitionTime"]
    }
    assert moved == {"Ready", "StorageAvailable", "RetentionEnforced"}


# Protected


def protected(history: History, *, pods: int = 1, hours: float = 0) -> tuple[str, str]:
    seen = changed(observed(history), pods=tuple(pod() for _ in range(pods)))
    return condition(later(seen, hours=hours), "Protected")


def test_protected_is_judged_only_while_pods_run() -> None:
    assert protected(training(100), pods=0, hours=9) == ("Unknown", "NotRunning")


def test_protected_needs_a_verified_snapshot_that_is_young_enough() -> None:
    assert protected(History().configured().started()) == ("False", "NoSnapshot")
    assert protected(History().configured().started().committed(100)) == ("False", "NotVerified")
    assert protected(training(100)) == ("True", "RecentSnapshot")
    assert protected(training(100), hours=0.7) == ("True", "RecentSnapshot")
    assert protected(training(100), hours=0.8) == ("False", "SnapshotTooOld")


def test_a_cadence_in_steps_alone_cannot_be_missed() -> None:
    history = History().configured(save=SavePolicy(every_steps=10, every_seconds=None)).started().committed(10)
    assert protected(history.verified(10), hours=99) == ("True", "RecentSnapshot")


def test_a_take_over_from_another_than_the_holder_is_called_wrong() -> None:
    history = History(OTHER_OWNER)
    seen = observed(history, storage={"url": "s3://bucket/run", "takeOverFrom": "cluster-x/training/llama"})
    assert condition(seen, "Ready") == ("False", "PrefixClaimed")
    message = message_of(seen, "Ready")
    assert f"takeOverFrom is cluster-x/training/llama, but the prefix is claimed by {OTHER_OWNER}" in message


# RestoreEnforced


def test_pods_that_never_start_an_attempt_are_noticed_after_ten_minutes() -> None:
    history = History().configured()
    seen = changed(observed(history), pods=(pod(started=history.now),))
    assert condition(later(seen, minutes=9), "RestoreEnforced") == ("Unknown", "NotRunning")
    assert condition(later(seen, minutes=11), "RestoreEnforced") == ("False", "NotReported")
    history.started()
    seen = changed(observed(history), pods=seen.cluster.pods)
    assert condition(later(seen, minutes=11), "RestoreEnforced") == ("True", "RestoredAsAsked")


def test_a_pod_that_reported_is_not_missed_when_its_kubelets_clock_is_ahead_of_the_stores() -> None:
    history = History().configured().started()
    ahead = pod(started=history.now + dt.timedelta(minutes=5))
    seen = later(changed(observed(history), pods=(ahead,)), minutes=30)
    assert condition(seen, "RestoreEnforced") == ("True", "RestoredAsAsked")
    stranger = replace(ahead, uid="33333333-0000-0000-0000-000000000000")
    assert condition(changed(seen, pods=(stranger,)), "RestoreEnforced") == ("False", "NotReported")


def test_a_commit_without_the_restore_that_was_announced_is_a_mismatch() -> None:
    history = training(100).started()
    assert condition(observed(history), "RestoreEnforced") == ("True", "RestoredAsAsked")
    history.committed(10)
    assert condition(observed(history), "RestoreEnforced") == ("False", "RestoreMismatch")


def test_a_rollback_that_names_nothing_says_what_an_id_is() -> None:
    named = {"rollback": {"request": "back", "snapshot": "llama-100-1-abcdefgh"}}
    seen = observed(training(100), restore=named)
    assert condition(seen, "RestoreEnforced") == ("False", "RollbackNotFound")
    message = next(c["message"] for c in status_of(seen)["conditions"] if c["type"] == "RestoreEnforced")
    assert "llama-100-1-abcdefgh" in message
    assert f"without {KEY.name}- at its beginning" in message


# RetentionEnforced


@pytest.mark.parametrize(
    ("retention", "changes", "spec", "expected"),
    [
        pytest.param(RetentionPolicy(keep_last=1), {}, {}, ("True", "Enforced"), id="a policy"),
        pytest.param(None, {}, {}, ("True", "NoRetention"), id="no policy"),
        pytest.param(RetentionPolicy(keep_last=1, dry_run=True), {}, {}, ("False", "DryRun"), id="a dry run"),
        pytest.param(RetentionPolicy(keep_last=1), {}, {"suspend": True}, ("False", "Suspended"), id="suspended"),
        pytest.param(
            RetentionPolicy(keep_last=1), {"refusal": "no"}, {}, ("False", "DeletionRefused"), id="nothing is deleted"
        ),
        pytest.param(
            RetentionPolicy(keep_last=1),
            {"fault": StoreFault(Reason.READ_ONLY, "no", stalled=True)},
            {},
            ("False", "ReadOnly"),
            id="read only",
        ),
        pytest.param(
            RetentionPolicy(keep_last=1),
            {"fault": StoreFault(Reason.STORE_UNAVAILABLE, "no")},
            {},
            ("Unknown", "NotKnown"),
            id="the store fails",
        ),
        pytest.param(RetentionPolicy(keep_last=1), {"owner": OTHER_OWNER}, {}, ("Unknown", "NotKnown"), id="not ours"),
    ],
)
def test_whether_retention_is_enforced_with(
    retention: RetentionPolicy | None, changes: dict[str, Any], spec: dict[str, Any], expected: tuple[str, str]
) -> None:
    seen = changed(observed(History().configured(retention=retention), **spec), **changes)
    assert condition(seen, "RetentionEnforced") == expected


def test_a_deletion_that_waits_for_a_read_back_says_for_which() -> None:
    retention = RetentionPolicy(keep_last=1, grace_seconds=0)
    history = History().configured(retention=retention).started().committed(100, 200).verified(100, 200).retired(100)
    seen = replace(observed(history), read_back=ReadBack(reading=history.id(200)))
    assert condition(seen, "RetentionEnforced") == ("False", "VerificationPending")
    message = message_of(seen, "RetentionEnforced")
    assert f"waits until one that stays is read back and its checksums match; now reading {history.id(200)}." in message
    history.verified(200, level="Checksums")
    assert condition(replace(seen, run=history.run), "RetentionEnforced") == ("True", "Enforced")


def test_reads_that_differ_each_time_are_a_condition() -> None:
    seen = observed(training(100).configured(retention=RetentionPolicy(keep_last=1)))
    trouble = ReadBack(trouble="3 reads failed in different ways", unreliable=True)
    assert condition(replace(seen, read_back=trouble), "RetentionEnforced") == ("False", "UnreliableReads")
    assert trouble.trouble in message_of(replace(seen, read_back=trouble), "RetentionEnforced")


def test_failing_saves_are_a_condition_until_the_next_commit() -> None:
    history = training(100)
    assert condition(observed(history), "SavesFailing") == ("False", "NotFailing")
    history.save_failed(200, failures=2, message="upload a key: the disk is full")
    seen = observed(history)
    assert condition(seen, "SavesFailing") == ("True", "SaveFailed")
    (message,) = (c["message"] for c in status_of(seen)["conditions"] if c["type"] == "SavesFailing")
    assert "2 saves in a row failed, at step 200: upload a key: the disk is full" in message
    assert condition(seen, "Ready") == ("True", "Configured")
    assert condition(observed(history.committed(300)), "SavesFailing") == ("False", "NotFailing")


def test_what_failed_in_an_attempt_that_is_over_is_not_failing() -> None:
    assert condition(observed(training(100).save_failed(200).started()), "SavesFailing") == ("False", "NotFailing")


def test_a_refused_deletion_leaves_the_checkpoint_ready() -> None:
    seen = changed(observed(training(100)), refusal="object lock")
    assert condition(seen, "Ready") == ("True", "Configured")
    assert condition(seen, "StorageAvailable") == ("True", "Available")


def test_a_store_that_can_only_be_read_still_tells_about_the_run() -> None:
    seen = replace(observed(training(100)), fault=StoreFault(Reason.READ_ONLY, "no", stalled=True))
    assert condition(seen, "Ready") == ("False", "ReadOnly")
    assert status_of(seen)["latest"]["step"] == 100


# Facts


def test_the_newest_live_snapshot_of_the_lineage_is_the_latest() -> None:
    history = training(100, 200).retired(200)
    assert status_of(observed(history))["latest"]["step"] == 100


def test_counts_and_sizes_are_those_of_restorable_snapshots() -> None:
    status = status_of(observed(training(100, 200, 300).retired(100)))
    assert (status["snapshots"], status["retainedBytes"]) == (2, 2000)


def test_the_best_follows_the_first_rule_and_skips_what_is_not_a_number() -> None:
    retention = {"keepBest": [{"metric": "accuracy", "mode": "Max"}]}
    policy = observed(None, retention=retention).policy
    assert policy is not None
    history = History().configured(retention=policy.retention).started()
    for step, accuracy in ((100, "0.5"), (200, "0.9"), (300, "nan")):
        history.committed(step, metrics={"accuracy": accuracy})
    best = status_of(observed(history, retention=retention))["best"]
    assert (best["step"], best["metric"], best["value"]) == (200, "accuracy", "0.9")


def test_a_restart_tells_what_it_restored_and_what_was_lost() -> None:
    history = training(100)
    died = RunProgress(1, 130, history.now + dt.timedelta(minutes=5))
    history.started().restored()
    seen = changed(observed(history), progress={1: died})
    restore = status_of(seen)["lastRestore"]
    assert (restore["attempt"], restore["reason"], restore["snapshot"]) == (2, "Latest", history.id(100))
    # The commit is a minute older than the entry that verified it.
    assert (restore["lostSteps"], restore["lostSeconds"]) == (30, 360)


def test_what_was_lost_stays_when_the_hint_is_overwritten() -> None:
    history = training(100)
    died = RunProgress(1, 130, history.now)
    history.started().restored()
    before = status_of(changed(observed(history), progress={1: died}))
    after = status_of(changed(observed(history, status=before), progress={2: RunProgress(2, 105, history.now)}))
    assert after == before


def test_what_was_lost_is_not_made_up() -> None:
    restore = status_of(observed(training(100).started().restored()))["lastRestore"]
    assert "lostSteps" not in restore


def test_a_save_on_the_way_out_loses_nothing() -> None:
    history = training(100)
    history.started().restored()
    restore = status_of(changed(observed(history), progress={1: RunProgress(1, 90, history.now)}))["lastRestore"]
    assert (restore["lostSteps"], restore["lostSeconds"]) == (0, 0)


@pytest.mark.parametrize(
    ("history", "reason", "skipped"),
    [
        pytest.param(training(100, 200).started().restored(), "Latest", False, id="the newest"),
        pytest.param(
            training(100, 200).started().failed_to_restore().restoring(100).restored(), "Fallback", True, id="an older"
        ),
        pytest.param(training(100, 200).rollback(100).started().restored(), "Rollback", False, id="on request"),
        pytest.param(training(100), "FreshStart", False, id="nothing"),
    ],
)
def test_the_reason_of_a_restore_of(history: History, reason: str, skipped: bool) -> None:
    restore = status_of(observed(history))["lastRestore"]
    assert restore["reason"] == reason
    assert ("skipped" in restore) == skipped


def test_retired_snapshots_wait_for_their_purge_in_order() -> None:
    retention = RetentionPolicy(keep_last=1, grace_seconds=3600)
    history = History().configured(retention=retention).started().committed(100, 200, 300).verified(100, 200, 300)
    history.retired(200, 100)
    pending = status_of(observed(history, retention={"keepLast": 1, "gracePeriod": "1h"}))["pendingPurge"]
    assert [each["snapshot"] for each in pending] == list(history.ids(200, 100))
    assert pending[0]["reasons"] == ["NoRuleKeepsIt"]


def test_a_dry_run_lists_what_it_would_purge() -> None:
    retention = RetentionPolicy(keep_last=1, dry_run=True)
    history = History().configured(retention=retention).started().committed(100, 200).verified(100, 200)
    pending = status_of(observed(history, retention={"keepLast": 1, "dryRun": True}))["pendingPurge"]
    assert [each["snapshot"] for each in pending] == [history.id(100)]


def test_a_tightened_policy_says_how_much_goes_although_it_lists_only_the_next_ones() -> None:
    steps = range(100, 2200, 100)
    retention = RetentionPolicy(keep_last=1, grace_seconds=3600)
    history = History().configured(retention=retention).started().committed(*steps).verified(steps[-1])
    history.retired(*steps[:-1])
    status = status_of(observed(history, retention={"keepLast": 1, "gracePeriod": "1h"}))
    assert [each["snapshot"] for each in status["pendingPurge"]] == list(history.ids(*steps[:16]))
    assert (status["pendingPurgeSnapshots"], status["pendingPurgeBytes"]) == (20, 20_000)


def test_quarantined_snapshots_are_listed_with_the_evidence() -> None:
    history = History().configured(restore=RestorePolicy(max_failures_per_snapshot=1)).started().committed(100, 200)
    history.found_damaged(200)
    status = status_of(observed(history))
    assert status["quarantinedSnapshots"] == 1
    (listed,) = status["quarantined"]
    assert listed["snapshot"] == history.id(200)
    assert listed["evidence"].startswith("ChecksumMismatch")


def test_pods_that_are_gone_were_still_pods_of_the_attempt() -> None:
    history = History().configured().started(pods=tuple(PodIdentity(f"p-{n}", f"uid-{n}") for n in range(16)))
    many = tuple(pod(f"p-{n}", f"uid-{n}") for n in range(40))
    first = status_of(changed(observed(history), pods=many))
    assert (first["attempt"]["podCount"], len(first["attempt"]["pods"])) == (40, 16)
    assert status_of(observed(history, status=first)) == {
        **first,
        "conditions": status_of(observed(history, status=first))["conditions"],
    }


def test_a_save_request_is_echoed_once_a_commit_answered_it_and_stays() -> None:
    history = History().configured().started().save_requested("now-1")
    asked = {"request": "now-1"}
    assert "lastSaveRequest" not in status_of(observed(history, save=asked))
    history.committed(100, save_request="now-1")
    status = status_of(observed(history, save=asked))
    assert status["lastSaveRequest"] == "now-1"
    assert status_of(observed(history))["lastSaveRequest"] == "now-1"


def test_a_rollback_is_echoed_once_the_log_has_it() -> None:
    history = training(100, 200)
    restore = {"rollback": {"request": "back-1", "snapshot": history.id(100)}}
    assert "lastRollback" not in status_of(observed(history, restore=restore))
    history.rollback(100, request="back-1")
    assert status_of(observed(history, restore=restore))["lastRollback"] == "back-1"


def test_the_status_names_the_log_entry_it_reflects_and_the_owner() -> None:
    history = training(100)
    status = status_of(observed(history))
    assert (status["logSequence"], status["claimedBy"]) == (history.run.head, str(OWNER))
    assert status["attempt"]["pods"] == [POD.name]


@pytest.mark.parametrize(("namespace", "named"), [(KEY.namespace, True), ("elsewhere", False)])
def test_a_rival_is_named_within_its_own_namespace_only(namespace: str, named: bool) -> None:
    status = status_of(changed(observed(None), rival=Key(namespace, "the-older-one"), run=None))
    assert ("the-older-one" in str(status)) is named
    assert ("elsewhere" in str(status)) is False
