"""What each entry means, and that an illegal one means nothing."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from checkpoint_sidecar.core.fold import FOLD
from checkpoint_sidecar.core.lineage import restore_plan
from checkpoint_sidecar.core.log import (
    KINDS,
    PurgeStarted,
    RestoreFinished,
    RollbackRequested,
    RunClaimed,
    SnapshotRetired,
    SnapshotVerified,
    StoredEntry,
    decode,
    encode,
)
from checkpoint_sidecar.core.policy import Policy, RestorePolicy, SavePolicy
from checkpoint_sidecar.core.replay import replay
from checkpoint_sidecar.core.run import RestoreRequest, Run, SnapshotState
from support.builders import BEGINNING, OTHER_OWNER, OWNER, POD, History, nonce_of

RETIRED, PURGING, PURGED = SnapshotState.RETIRED, SnapshotState.PURGING, SnapshotState.PURGED


def unknown(number: int, previous: str, *, critical: bool) -> StoredEntry:
    """An entry of a later version, which has a kind this one does not know."""
    known = encode(
        number=number, entry_id="x", previous=previous, time=BEGINNING, writer="later", body=PurgeStarted("x")
    )
    data = json.dumps(json.loads(known) | {"kind": "SnapshotMoved", "critical": critical}).encode()
    return decode(data, number=number, stored_at=BEGINNING)


def meaning(run: Run) -> Run:
    """The state without the position in the log, which every entry moves."""
    return replace(run, head=0, head_digest="")


# Meaning, entry by entry


def test_every_kind_of_entry_has_a_meaning() -> None:
    assert set(FOLD) == set(KINDS.values())


def test_a_run_belongs_to_the_first_owner_that_claimed_it() -> None:
    assert History().run.owner == OWNER


def test_adoption_changes_the_owner_and_remembers_the_former_one() -> None:
    run = History().adopted(OTHER_OWNER).run
    assert run.owner == OTHER_OWNER
    assert [each.previous_owner for each in run.adoptions] == [OWNER]


def test_adoption_leaves_the_policy_in_force_until_the_new_owner_writes_its_own() -> None:
    history = History().configured(overwrite="Replace").adopted()
    assert history.run.policy.overwrite == "Replace"
    assert history.run.configured is not None
    assert history.configured(overwrite="Skip", uid="another object").run.policy.overwrite == "Skip"


def test_an_attempt_that_is_fenced_may_not_commit_and_the_next_one_may() -> None:
    history = History().started().committed(100).fenced()
    assert not history.run.may_commit(1)
    assert history.committed(200).snapshot(200).reasons == ("Fenced",)
    assert history.started().restored().committed(300).run.newest == history.id(300)


def test_only_the_highest_attempt_can_be_fenced_by_its_number() -> None:
    history = History().started().committed(100).started().restored()
    assert history.fenced(attempt=1).run.may_commit(2)
    assert history.fenced(attempt=3).run.may_commit(2)


def test_the_newest_generation_of_the_policy_is_in_force() -> None:
    run = History().configured(overwrite="Skip", generation=3).configured(overwrite="Replace", generation=4).run
    assert run.policy == Policy(overwrite="Replace")
    assert run.configured is not None
    assert run.configured[1] == 4


def test_a_recreated_object_counts_its_generations_from_one_again() -> None:
    history = History().configured(generation=9).configured(uid="recreated", generation=1, save=SavePolicy(100))
    assert history.run.configured == ("recreated", 1)
    assert history.run.policy.save.every_steps == 100


def test_a_start_takes_the_next_number_and_uses_its_candidate_at_once() -> None:
    history = History().started().committed(100).started()
    attempt = history.run.attempt
    assert attempt is not None
    assert (attempt.number, attempt.in_use, attempt.restored) == (2, history.id(100), None)
    assert attempt.started.pods == (POD,)
    assert attempt.started_at == history.now


def test_a_snapshot_is_in_use_from_its_announcement_until_the_first_commit() -> None:
    history = History().started().committed(100, 200).started()
    seen = []
    tales: tuple[Callable[[], History], ...] = (
        lambda: history,
        lambda: history.failed_to_restore(200),
        lambda: history.restoring(100),
        lambda: history.restored(100),
        lambda: history.committed(150),
    )
    for tell in tales:
        attempt = tell().run.attempt
        assert attempt is not None
        seen.append(attempt.in_use)
    assert seen == [history.id(200), None, history.id(100), history.id(100), None]


def test_a_failure_of_an_earlier_candidate_does_not_release_the_one_in_use() -> None:
    history = History().started().committed(100, 200).started().restoring(100).failed_to_restore(200)
    assert history.run.attempts[2].in_use == history.id(100)


def test_a_restore_proves_the_snapshot_as_far_as_it_checked() -> None:
    history = History().started().committed(100).started()
    assert history.restored(verified="Sizes").snapshot(100).verified == "Sizes"
    assert history.verified(100, level="Checksums").snapshot(100).verified == "Checksums"
    assert history.verified(100, level="Sizes").snapshot(100).verified == "Checksums"


def test_a_commit_makes_a_live_snapshot_with_the_stores_time() -> None:
    history = History().started().committed(100, metrics={"loss": "0.5"})
    snapshot = history.snapshot(100)
    assert snapshot.live
    assert snapshot.number == 3
    assert snapshot.committed_at == history.now
    assert snapshot.commit.metrics == {"loss": "0.5"}
    assert history.run.newest == snapshot.id


def test_evidence_counts_against_a_snapshot() -> None:
    history = History().started().committed(100).found_damaged(100, evidence="MissingObject")
    history.started().failed_to_restore(100, evidence="SizeMismatch")
    assert history.snapshot(100).failures == 2
    assert history.snapshot(100).evidence.startswith("SizeMismatch")
    assert not history.snapshot(100).proven


def test_reading_all_of_it_without_a_difference_clears_a_suspect() -> None:
    history = History().started().committed(100).found_damaged(100).verified(100, level="Sizes")
    assert history.snapshot(100).failures == 1, "sizes say nothing about a checksum"
    history.verified(100, level="Checksums")
    assert (history.snapshot(100).failures, history.snapshot(100).evidence) == (0, "")


@pytest.mark.parametrize(
    "compared",
    [pytest.param(999, id="a part of it"), pytest.param(msgspec.UNSET, id="by a version that did not count")],
)
def test_a_restore_that_does_not_say_that_it_compared_all_of_it_verifies_nothing(compared: Any) -> None:
    history = History().started().committed(100).found_damaged(100).started().restored(compared_bytes=compared)
    assert (history.snapshot(100).verified, history.snapshot(100).failures) == ("None", 1)
    assert history.run.attempts[2].restored == history.id(100), "it was restored all the same"


def test_a_restore_that_compared_all_of_it_verifies_it_and_clears_a_suspect() -> None:
    history = History().started().committed(100).found_damaged(100).started().restored(compared_bytes=1000)
    assert (history.snapshot(100).verified, history.snapshot(100).failures) == ("Checksums", 0)


def test_a_failure_without_evidence_says_nothing_about_the_snapshot() -> None:
    history = History().started().committed(100).verified(100).started().failed_to_restore(evidence="None")
    history.append(SnapshotVerified(history.id(100), "Checksums", passed=False, message="the store was down"))
    assert history.snapshot(100).failures == 0
    assert history.snapshot(100).proven


def test_a_snapshot_goes_from_live_over_retired_and_purging_to_purged() -> None:
    history = History().started().committed(100)
    assert history.snapshot(100).state is SnapshotState.LIVE
    assert history.retired(100).snapshot(100).state is RETIRED
    assert history.purge_started(100).snapshot(100).state is PURGING
    assert history.purged(100).snapshot(100).state is PURGED


def test_retiring_notes_when_and_why_and_reinstating_forgets_it() -> None:
    history = History().started().committed(100).retired(100, reasons=("MaxAge",))
    assert history.snapshot(100).retired_at == history.now
    assert history.snapshot(100).reasons == ("MaxAge",)
    history.reinstated(100)
    assert history.snapshot(100).live
    assert history.snapshot(100).retired_at is None
    assert history.snapshot(100).reasons == ()


def test_a_snapshot_retired_again_waits_from_the_second_time_on() -> None:
    history = History().started().committed(100).retired(100).wait(hours=2).reinstated(100).retired(100)
    assert history.snapshot(100).retired_at == history.now


def test_reinstating_by_the_library_announces_the_snapshot() -> None:
    history = History().started().committed(100).retired(100).started().reinstated(100, attempt=2)
    assert history.run.attempts[2].in_use == history.id(100)


def test_requests_notices_and_dispositions_are_noted() -> None:
    history = History().started().committed(100).save_requested("a").save_requested("b").evicted("Preempted")
    history.disposed(100, "Hold")
    attempt = history.run.attempts[1]
    assert attempt.save_request == "b"
    assert attempt.eviction is not None
    assert attempt.eviction.reason == "Preempted"
    assert attempt.eviction_at == history.now - dt.timedelta(minutes=1)
    assert history.snapshot(100).disposition == "Hold"


def test_a_critical_entry_of_a_later_version_is_noted_and_another_unknown_one_is_not() -> None:
    entries = History().entries
    harmless = unknown(2, entries[-1].digest, critical=False)
    critical = unknown(3, harmless.digest, critical=True)
    assert replay([*entries, harmless]).unknown_critical == ""
    assert replay([*entries, harmless, critical]).unknown_critical == "SnapshotMoved"


# Requests act once


def test_a_rollback_is_pending_until_a_commit_carries_it() -> None:
    history = History().started().committed(100, 200).rollback(100)
    target = RestoreRequest("rollback-1", history.id(100))
    assert history.run.pending == target
    assert history.started().restored().run.pending == target
    history.started().restored().committed(150)
    assert history.run.pending is None
    assert history.run.consumed == {"rollback-1"}


def test_a_rollback_that_was_served_never_acts_again() -> None:
    history = History().started().committed(100, 200).rollback(100).started().restored().committed(150)
    assert history.rollback(100).run.pending is None


def test_the_commit_of_a_former_request_leaves_the_newer_one_pending() -> None:
    history = History().started().committed(100, 200).rollback(200, request="first").started().restored()
    history.rollback(100, request="second").committed(250)
    assert history.run.consumed == {"first"}
    assert history.run.pending == RestoreRequest("second", history.id(100))


def test_a_request_id_stands_for_one_target() -> None:
    history = History().started().committed(100, 200).rollback(100).rollback(200)
    assert history.run.pending == RestoreRequest("rollback-1", history.id(100))


def test_a_rollback_that_a_later_one_replaced_never_acts_again() -> None:
    history = History().started().committed(100, 200).rollback(100, request="first").rollback(200, request="second")
    assert history.rollback(100, request="first").run.pending == RestoreRequest("second", history.id(200))
    history.started().restored().committed(250)
    assert history.rollback(100, request="first").run.pending is None
    assert history.run.rollbacks == ("first", "second")


def test_a_rollback_to_a_retired_snapshot_makes_it_a_candidate_at_once() -> None:
    history = History().started().committed(100, 200, 300).retired(200).rollback(200)
    assert history.snapshot(200).live
    assert restore_plan(history.run, history.run.pending).candidates[0] == history.id(200)


@pytest.mark.parametrize("restore", [RestorePolicy(mode="None"), RestorePolicy(mode="None", on_missing="Fail")])
def test_mode_none_asks_for_one_fresh_start(restore: RestorePolicy) -> None:
    history = History().started().committed(100).configured(restore=restore)
    assert history.run.pending is not None
    assert history.run.pending.snapshot is None
    history.started()
    assert history.run.attempts[2].fresh
    history.committed(10)
    assert history.run.pending is None
    assert history.run.newest == history.id(10)
    assert history.configured(restore=restore, save=SavePolicy(50)).run.pending is None


def test_a_fresh_start_that_was_withdrawn_in_time_does_not_act() -> None:
    history = History().started().committed(100).configured(restore=RestorePolicy(mode="None")).configured()
    assert history.run.pending is None
    assert not history.started().run.attempts[2].fresh


def test_a_fresh_start_that_was_withdrawn_too_late_may_continue() -> None:
    history = History().started().committed(100).configured(restore=RestorePolicy(mode="None")).started()
    assert history.configured().committed(10).run.newest == history.id(10)


def test_two_writers_of_the_policy_taking_turns_cause_one_fresh_start() -> None:
    anew = RestorePolicy(mode="None")
    history = History().started().committed(100).configured(restore=anew, uid="new", generation=1).started()
    history.committed(10).configured(uid="old", generation=7).configured(restore=anew, uid="new", generation=1)
    assert history.run.pending is None


def test_a_fresh_start_leaves_a_later_rollback_alone() -> None:
    history = History().started().committed(100).configured(restore=RestorePolicy(mode="None")).rollback(100)
    assert history.configured().run.pending == RestoreRequest("rollback-1", history.id(100))


# Illegal entries

TELLERS: dict[str, tuple[Callable[[], History], Callable[[History], History]]] = {
    "a second claim": (History, lambda h: h.append(RunClaimed(OTHER_OWNER))),
    "an adoption from another than the owner": (History, lambda h: h.adopted(OWNER, previous=OTHER_OWNER)),
    "an old generation of the policy": (
        lambda: History().configured(generation=4),
        lambda h: h.configured(overwrite="Replace", generation=4),
    ),
    "a start with a number already taken": (lambda: History().started().started(), lambda h: h.started(attempt=1)),
    "a start that skips a number": (lambda: History().started(), lambda h: h.started(attempt=3)),
    "a restore announced by an attempt that never started": (
        lambda: History().started().committed(100),
        lambda h: h.restoring(100, attempt=2),
    ),
    "a restore of a snapshot that does not exist": (
        lambda: History().started().committed(100).started(),
        lambda h: h.append(RestoreFinished(2, "999-1-abcdefgh", restored=True, verified="Checksums")),
    ),
    "a rollback to a snapshot that does not exist": (
        lambda: History().started().committed(100),
        lambda h: h.append(RollbackRequested("r", "999-1-abcdefgh")),
    ),
    "a rollback to a snapshot that is being purged": (
        lambda: History().started().committed(100, 200).retired(100).purge_started(100),
        lambda h: h.rollback(100),
    ),
    "a check of a snapshot that does not exist": (
        History,
        lambda h: h.append(SnapshotVerified("999-1-abcdefgh", "Sizes", passed=True)),
    ),
    "a save asked of an attempt that never started": (History, lambda h: h.save_requested(attempt=1)),
    "a second eviction notice": (lambda: History().started().evicted(), lambda h: h.evicted("another")),
    "retiring a snapshot that does not exist": (History, lambda h: h.append(SnapshotRetired("999-1-abcdefgh", ()))),
    "retiring twice": (lambda: History().started().committed(100).retired(100), lambda h: h.retired(100)),
    "reinstating a live snapshot": (lambda: History().started().committed(100), lambda h: h.reinstated(100)),
    "reinstating after the purge began": (
        lambda: History().started().committed(100).retired(100).purge_started(100),
        lambda h: h.reinstated(100, attempt=1),
    ),
    "purging a live snapshot": (lambda: History().started().committed(100), lambda h: h.purge_started(100)),
    "the end of a purge that never began": (
        lambda: History().started().committed(100).retired(100),
        lambda h: h.purged(100),
    ),
}


@pytest.mark.parametrize(("before", "illegal"), TELLERS.values(), ids=TELLERS)
def test_an_illegal_entry_changes_nothing(before: Callable[[], History], illegal: Callable[[History], History]) -> None:
    history = before()
    expected = meaning(history.run)
    assert meaning(illegal(history).run) == expected


def next_nonce(history: History) -> str:
    """What the builder gives the next save, so that the path alone is wrong."""
    return nonce_of(len(history.entries))


REJECTED = {
    "of a fenced attempt": ("Fenced", lambda h: h.started().committed(300, attempt=1)),
    "of an attempt that never started": ("Fenced", lambda h: h.committed(300, attempt=7)),
    "after the run changed hands": ("Fenced", lambda h: h.adopted().committed(300)),
    "of a step that its lineage has": ("StepExists", lambda h: h.committed(200)),
    "that names another parent": ("WrongParent", lambda h: h.committed(300, parent=h.id(100))),
    "that names no parent": ("WrongParent", lambda h: h.committed(300, parent="")),
    "that carries a request it did not start with": ("WrongRequest", lambda h: h.committed(300, restore_request="r")),
    "that replaces a snapshot of another step": ("ReplacesNothing", lambda h: h.committed(300, replaces=h.id(100))),
    "that begins anew without a request": ("NothingRestored", lambda h: h.started().committed(300)),
    "that continues what does not exist": (
        "WrongParent",
        lambda h: h.started(candidate="", continues="999-1-abcdefgh").committed(300),
    ),
    "in a folder upwards": ("InvalidPath", lambda h: h.committed(300, path="../step-300/0001-abcdefgh")),
    "in the folder of another step": (
        "InvalidPath",
        lambda h: h.committed(300, path=f"step-200/0001-{next_nonce(h)}"),
    ),
    "in the folder of another attempt": (
        "InvalidPath",
        lambda h: h.committed(300, path=f"step-300/0002-{next_nonce(h)}"),
    ),
    "under the id of another save": ("InvalidPath", lambda h: h.committed(300, snapshot="300-1-abcdefgh")),
    "under an id that is none": ("InvalidPath", lambda h: h.committed(300, snapshot="x")),
}


@pytest.mark.parametrize(("reason", "commit"), REJECTED.values(), ids=REJECTED)
def test_a_commit_is_kept_as_rejected(reason: str, commit: Callable[[History], History]) -> None:
    """It never becomes a candidate, and what was newest stays newest."""
    history = History().started().committed(100, 200)
    newest = history.run.newest
    commit(history)
    rejected = list(history.run.snapshots.values())[-1]
    assert rejected.state is SnapshotState.REJECTED
    assert rejected.reasons == (reason,)
    assert history.run.newest == newest
    assert rejected.id not in restore_plan(history.run, None).candidates


def test_a_rejected_commit_consumes_no_request() -> None:
    history = History().started().committed(100, 200).rollback(100).started().committed(150)
    assert history.snapshot(150).reasons == ("NothingRestored",)
    assert history.run.pending is not None


def test_a_rejected_commit_is_no_base_for_a_restore() -> None:
    history = History().started().committed(100, 200).committed(200).started().restored().committed(300)
    expected = meaning(history.run)
    assert meaning(history.append(RestoreFinished(2, history.id(200), restored=True)).run) == expected


def test_a_second_commit_of_the_same_id_changes_nothing() -> None:
    history = History().started().committed(100).committed(200)
    first = history.snapshot(100)
    history.append(first.commit)
    assert history.snapshot(100) == first
