"""What the library may append: the whole entry, computed from the log as it stands."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import msgspec
import pytest

from checkpoint_sidecar.core.attempt import (
    AUTOMATIC,
    Admitted,
    AlreadySaved,
    admit_save,
    announce,
    claim,
    commit,
    current,
    finish_restore,
    places,
    plan_for,
    start,
    start_over,
)
from checkpoint_sidecar.core.errors import (
    CheckpointError,
    CheckpointExistsError,
    FencedError,
    PrefixClaimedError,
    RestoreError,
    RestoreInterrupted,
)
from checkpoint_sidecar.core.log import (
    PodIdentity,
    RestoreFinished,
    RestoreStarted,
    RunClaimed,
    SnapshotCommitted,
    SnapshotReinstated,
    Trigger,
)
from checkpoint_sidecar.core.policy import OverwritePolicy, RestorePolicy
from support.builders import OTHER_OWNER, OWNER, POD, History

URL = "s3://training/llama"


def draft(step: int, attempt: int, trigger: Trigger = "Manual") -> SnapshotCommitted:
    """What the library knows of a save once it is uploaded."""
    path = f"step-{step}/{attempt:04d}-abcdefgh"
    return SnapshotCommitted(f"{step}-{attempt}-abcdefgh", step, attempt, path, "ab" * 32, 1, 1, 1, trigger=trigger)


# Whose prefix


def test_an_empty_prefix_is_claimed() -> None:
    assert claim(History(owner=None).run, OWNER, url=URL) == RunClaimed(OWNER)


def test_ones_own_prefix_needs_no_claim() -> None:
    assert claim(History().run, OWNER, url=URL) is None


def test_the_loser_of_the_race_for_a_prefix_learns_its_owner() -> None:
    with pytest.raises(PrefixClaimedError, match=f"claimed by {OWNER}.*takeOverFrom: {OWNER}") as caught:
        claim(History().run, OTHER_OWNER, url=URL)
    assert caught.value.subject == URL


def test_a_former_owner_is_refused_after_an_adoption() -> None:
    run = History().adopted(OTHER_OWNER).run
    assert claim(run, OTHER_OWNER, url=URL) is None
    with pytest.raises(PrefixClaimedError):
        claim(run, OWNER, url=URL)


# Starting


def test_the_first_start_has_number_1_and_nothing_to_restore() -> None:
    entry = start(History().run, world_size=2, pods=(POD,))
    assert (entry.attempt, entry.candidate, entry.restore_request) == (1, "", "")


def test_a_start_that_lost_the_race_for_a_number_takes_the_next_and_the_newest_snapshot() -> None:
    history = History().started().committed(100)
    before = start(history.run, world_size=2, pods=())
    history.committed(200).started()
    after = start(history.run, world_size=2, pods=())
    assert (before.attempt, before.candidate) == (2, history.id(100))
    assert (after.attempt, after.candidate) == (3, history.id(200))


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ((), 0),
        (("trainer-0", "trainer-1"), 2),
        (("gpu-1:4711", "gpu-1:4712"), 1),
        (("gpu-1:4711", "gpu-2:4711", "gpu-2:4712"), 2),
    ],
)
def test_processes_of_one_host_are_one_place(names: tuple[str, ...], count: int) -> None:
    assert places([PodIdentity(name, f"uid-{number}") for number, name in enumerate(names)]) == count


def test_a_start_names_at_most_sixteen_pods() -> None:
    assert len(start(History().run, world_size=64, pods=(POD,) * 64).pods) == 16


def test_a_drop_in_directory_starts_over_the_newest_snapshot_without_restoring_it() -> None:
    history = History().configured(overwrite="Replace").started().committed(0)
    history.append(start_over(history.run, world_size=2))
    entry = commit(history.run, draft(0, 2), overwrite="Replace")
    assert entry is not None
    assert entry.parent == entry.replaces == history.id(0)
    assert history.append(entry).run.newest == entry.snapshot


# Fencing

FENCED: dict[str, Callable[[History], History]] = {
    "a later attempt started": lambda h: h.started(),
    "the run changed hands": lambda h: h.adopted(),
    "both": lambda h: h.adopted().started(),
}
WRITES: dict[str, Callable[[History], object]] = {
    "looking at its state": lambda h: current(h.run, 1),
    "planning a restore": lambda h: plan_for(h.run, 1),
    "announcing a candidate": lambda h: announce(h.run, 1, ()),
    "finishing a restore": lambda h: finish_restore(h.run, RestoreFinished(1, "100-1-abcdefgh", True)),
    "admitting a save": lambda h: admit_save(h.run, 1, 300, trigger="Manual", overwrite="Never"),
    "committing": lambda h: commit(h.run, draft(300, 1), overwrite="Never"),
}


@pytest.mark.parametrize("fence", FENCED.values(), ids=FENCED)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_fenced_attempt_may_not_continue(
    write: Callable[[History], object], fence: Callable[[History], History]
) -> None:
    history = History().started().committed(100)
    write(history)
    with pytest.raises(FencedError, match=r"attempt 1: .* Let this process exit"):
        write(fence(history))


# Restoring


def test_each_candidate_is_announced_in_turn_and_retired_ones_are_reinstated_last() -> None:
    history = History().started().committed(100, 200, 300).retired(100).started()
    tried: list[str] = []
    announced = []
    while (entry := announce(history.run, 2, tried)) is not None:
        announced.append(type(entry))
        tried.append(entry.snapshot)
    assert tried == list(history.ids(300, 200, 100))
    assert announced == [RestoreStarted, RestoreStarted, SnapshotReinstated]


def test_a_candidate_retired_since_the_start_is_announced_after_the_live_ones() -> None:
    history = History().started().committed(100, 200, 300).started().retired(200)
    entry = announce(history.run, 2, [history.id(300)])
    assert entry == RestoreStarted(2, history.id(100))


def test_an_attempt_restores_under_the_request_it_announced() -> None:
    history = History().started().committed(100, 200).started().rollback(100)
    assert plan_for(history.run, 2).candidates == history.ids(200, 100)
    assert plan_for(history.started().run, 3).candidates == history.ids(100)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda h: h.rollback(100, request="newer"), id="replaced"),
        pytest.param(lambda h: h.configured(restore=RestorePolicy(mode="None")), id="replaced by a fresh start"),
    ],
)
def test_an_attempt_whose_request_was_replaced_must_start_again(change: Callable[[History], History]) -> None:
    history = History().started().committed(100, 200).rollback(200).started()
    with pytest.raises(RestoreInterrupted, match="the next attempt serves the newer request"):
        announce(change(history).run, 2, ())


def test_a_fresh_start_announces_nothing() -> None:
    history = History().started().committed(100).configured(restore=RestorePolicy(mode="None")).started()
    assert announce(history.run, 2, ()) is None
    assert plan_for(history.run, 2).fresh_start


# Saving

POLICIES: list[OverwritePolicy] = ["Never", "Skip", "Replace"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_new_step_is_admitted_under_every_policy(policy: OverwritePolicy) -> None:
    history = History().configured(overwrite=policy).started().committed(100)
    assert admit_save(history.run, 1, 200, trigger="Manual", overwrite="Never") == Admitted("")


def test_never_refuses_a_step_that_is_saved() -> None:
    history = History().configured(overwrite="Never").started().committed(100)
    with pytest.raises(CheckpointExistsError, match="Checkpoint already exists: snapshot 100-1-"):
        admit_save(history.run, 1, 100, trigger="Manual", overwrite="Replace")


def test_skip_lets_the_saved_step_stand() -> None:
    history = History().configured(overwrite="Skip").started().committed(100)
    expected = AlreadySaved(history.snapshot(100))
    assert admit_save(history.run, 1, 100, trigger="Manual", overwrite="Never") == expected
    assert commit(history.run, draft(100, 1), overwrite="Never") is None


def test_replace_names_what_it_replaces() -> None:
    history = History().configured(overwrite="Replace").started().committed(100)
    assert admit_save(history.run, 1, 100, trigger="Manual", overwrite="Never") == Admitted(history.id(100))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("trigger", sorted(AUTOMATIC))
def test_an_automatic_save_of_a_saved_step_is_a_no_op_under_every_policy(
    trigger: Trigger, policy: OverwritePolicy
) -> None:
    """SIGTERM right after a scheduled save is no mistake of the user's."""
    history = History().configured(overwrite=policy).started().committed(100)
    assert admit_save(history.run, 1, 100, trigger=trigger, overwrite=policy) == AlreadySaved(history.snapshot(100))
    assert commit(history.run, draft(100, 1, trigger), overwrite=policy) is None


@pytest.mark.parametrize("policy", POLICIES)
def test_the_callers_policy_holds_until_there_is_one_in_the_log(policy: OverwritePolicy) -> None:
    history = History().started().committed(100)
    if policy == "Never":
        with pytest.raises(CheckpointExistsError):
            admit_save(history.run, 1, 100, trigger="Manual", overwrite=policy)
    else:
        assert admit_save(history.run, 1, 100, trigger="Manual", overwrite=policy) in (
            AlreadySaved(history.snapshot(100)),
            Admitted(history.id(100)),
        )


def test_a_step_of_an_abandoned_branch_may_be_saved_again() -> None:
    history = History().started().committed(100, 200).rollback(100).started().restored()
    assert admit_save(history.run, 2, 200, trigger="Manual", overwrite="Never") == Admitted("")


def test_a_step_whose_snapshot_was_retired_may_be_saved_again() -> None:
    history = History().started().committed(100, 200).retired(100)
    assert admit_save(history.run, 1, 100, trigger="Manual", overwrite="Never") == Admitted("")


def test_the_policy_is_checked_again_at_the_commit() -> None:
    history = History().configured(overwrite="Replace").started().committed(100)
    admit_save(history.run, 1, 100, trigger="Manual", overwrite="Replace")
    history.configured(overwrite="Never")
    with pytest.raises(CheckpointExistsError):
        commit(history.run, draft(100, 1), overwrite="Replace")


def test_a_commit_takes_its_place_in_the_lineage_from_the_log_and_nothing_from_the_draft() -> None:
    history = History().started().committed(100, 200).rollback(100).started().restored()
    forged = msgspec.structs.replace(draft(150, 2), parent="x", replaces="y", restore_request="z")
    entry = commit(history.run, forged, overwrite="Never")
    assert entry is not None
    assert (entry.parent, entry.replaces, entry.restore_request) == (history.id(100), "", "rollback-1")
    assert history.append(entry).snapshot(150).live


def test_an_attempt_that_restored_nothing_may_not_begin_anew_beside_existing_snapshots() -> None:
    history = History().started().committed(100).started()
    with pytest.raises(RestoreError, match="restored nothing although the run has snapshots"):
        admit_save(history.run, 2, 10, trigger="Manual", overwrite="Never")


@pytest.mark.parametrize(
    "tell",
    [
        pytest.param(lambda: History().started(), id="nothing was ever saved"),
        pytest.param(
            lambda: History().started().committed(100).configured(restore=RestorePolicy(mode="None")).started(),
            id="a fresh start was asked for",
        ),
        pytest.param(
            lambda: (
                History().started().committed(100).configured(restore=RestorePolicy(on_missing="StartFresh")).started()
            ),
            id="onMissing is StartFresh",
        ),
    ],
)
def test_an_attempt_may_begin_anew_when(tell: Callable[[], History]) -> None:
    history = tell()
    entry = commit(history.run, draft(10, history.run.highest_attempt), overwrite="Never")
    assert entry is not None
    assert history.append(entry).run.newest == entry.snapshot


# Errors


def test_an_error_keeps_its_four_parts_on_the_way_to_another_rank() -> None:
    error = FencedError("save", "s3://bucket/run", "fenced", "Exit.")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, FencedError)
    assert isinstance(copy, CheckpointError)
    assert (copy.operation, copy.subject, copy.cause, copy.hint) == ("save", "s3://bucket/run", "fenced", "Exit.")
    assert str(copy) == "save s3://bucket/run: fenced. Exit."
