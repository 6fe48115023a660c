"""Which leftovers may be deleted: those of fenced attempts that no commit names, when they are old enough."""

from __future__ import annotations

import datetime as dt

import pytest

from checkpoint_sidecar.core.layout import SaveFolder, parse_save_folder
from checkpoint_sidecar.core.orphans import (
    abandoned,
    collection_due_at,
    last_collection_due_at,
    left_by_last,
    old_probes,
    orphaned,
)
from checkpoint_sidecar.core.policy import RetentionPolicy
from checkpoint_sidecar.core.run import SnapshotState
from support.builders import BEGINNING, OTHER_OWNER, History, nonce_of

HOUR = dt.timedelta(hours=1)
IDENTITY = History().run.short_identity
KEEP = RetentionPolicy(keep_last=1, grace_seconds=3600)


def folder(step: int | None, attempt: int) -> SaveFolder:
    """Return the folder of a save of this history's run: entry 1 is the same in all histories."""
    return SaveFolder(step, attempt, nonce_of(99), History().run.short_identity)


def found(history: History, *folders: SaveFolder | str, age: dt.timedelta = HOUR) -> tuple[str, ...]:
    """What of one file in each folder may be deleted."""
    paths = [each if isinstance(each, str) else each.path for each in folders]
    modified = {f"{path}/__0_0.distcp": history.now - age for path in paths}
    return tuple(key.rpartition("/")[0] for key in orphaned(history.run, modified, now=history.now))


@pytest.fixture
def history() -> History:
    """Two attempts, the first of which committed step 100."""
    return History().configured(retention=KEEP).started().committed(100).started()


def test_a_save_that_a_fenced_attempt_never_committed_is_an_orphan(history: History) -> None:
    assert found(history, folder(200, 1)) == (folder(200, 1).path,)


def test_a_save_of_the_running_attempt_or_a_later_one_is_none(history: History) -> None:
    assert found(history, folder(200, 2), folder(200, 3)) == ()


def test_a_snapshot_that_holds_data_is_none(history: History) -> None:
    history.committed(300).verified(300)
    path = history.snapshot(100).commit.path
    for tell in (lambda: history.retired(100), lambda: history.purge_started(100), lambda: None):
        assert found(history.started(), path) == ()
        tell()


def test_what_a_late_writer_adds_to_a_purged_snapshot_is_one(history: History) -> None:
    history.committed(300).verified(300).retired(100).purge_started(100).purged(100)
    path = history.snapshot(100).commit.path
    assert found(history.started().wait(hours=1), path) == (path,)


def test_what_a_rejected_commit_names_goes_after_its_grace(history: History) -> None:
    history.committed(200, attempt=1)
    rejected = history.snapshot(200)
    assert rejected.state is SnapshotState.REJECTED
    assert found(history, rejected.commit.path, age=2 * HOUR) == (), "the grace begins with the commit"
    history.wait(hours=1)
    assert found(history, rejected.commit.path) == (rejected.commit.path,)


def test_nothing_is_deleted_on_account_of_a_commit_that_names_what_is_not_in_its_place(history: History) -> None:
    history.committed(200, attempt=1, path="step-300/0001-aaaaaaaa")
    history.wait(hours=1)
    assert found(history, "step-300/0001-aaaaaaaa") == ()


def test_a_commit_keeps_the_folder_that_its_path_names(history: History) -> None:
    history.started().committed(200, path=folder(200, 1).path)
    assert found(history.started(), folder(200, 1)) == ()


def test_a_save_is_spared_until_its_newest_object_has_had_its_grace(history: History) -> None:
    one, two = f"{folder(200, 1).path}/__0_0.distcp", f"{folder(200, 1).path}/__1_0.distcp"
    old, new = history.now - 2 * HOUR, history.now - HOUR + dt.timedelta(seconds=1)
    assert orphaned(history.run, {one: old, two: new}, now=history.now) == ()
    later = history.now + dt.timedelta(seconds=1)
    assert orphaned(history.run, {one: old, two: new}, now=later) == (one, two)


@pytest.mark.parametrize(
    "key",
    [
        "step-200/.metadata",
        "step-200/notes.txt",
        "step-200/0001-short/__0_0.distcp",
        "step-200/0001-aaaaaaaa/deeper/__0_0.distcp",
        "step-0200/0001-aaaaaaaa/__0_0.distcp",
        "0001-aaaaaaaa/__0_0.distcp",
        pytest.param("step-200/0001-aaaaaaaa/__0_0.distcp", id="a folder that says not whose it is"),
        pytest.param("step-200/0001-aaaaaaaa-01234567/__0_0.distcp", id="a save of another run"),
        pytest.param(f"{SaveFolder(200, 1, 'aaaaaaaa', IDENTITY).path}/notes.txt", id="a note beside our files"),
        "_log/00000000000000000001.json",
        "_progress.json",
    ],
)
def test_what_is_not_in_the_folder_of_a_save_of_the_run_is_never_touched(history: History, key: str) -> None:
    assert orphaned(history.run, {key: history.now - 100 * HOUR}, now=history.now) == ()


def test_what_the_attempts_of_the_former_owner_left_is_found(history: History) -> None:
    history.adopted(OTHER_OWNER)
    assert found(history, folder(300, 2), folder(300, 3)) == (folder(300, 2).path,)


def test_what_the_last_attempt_left_is_found_once_it_is_fenced(history: History) -> None:
    assert found(history, folder(300, 2)) == ()
    history.restored().committed(200).fenced()
    assert found(history, folder(300, 2), history.snapshot(200).commit.path) == (folder(300, 2).path,)
    assert found(history.started(), folder(300, 3)) == (), "a later attempt is not concerned"


@pytest.mark.parametrize(
    ("heard_after", "ended", "due_after"),
    [
        pytest.param(None, False, 24, id="it started, and nothing was heard since"),
        pytest.param(10, False, 34, id="it reported progress"),
        pytest.param(10, True, 11, id="it said goodbye"),
    ],
)
def test_the_last_attempt_may_be_fenced_when_nothing_was_heard_of_it_for_a_day(
    heard_after: int | None, ended: bool, due_after: int, history: History
) -> None:
    heard = None if heard_after is None else history.now + heard_after * HOUR
    assert last_collection_due_at(history.run, heard=heard, ended=ended) == history.now + due_after * HOUR


def test_a_commit_is_a_sign_of_life(history: History) -> None:
    history.restored().wait(hours=5).committed(200)
    assert last_collection_due_at(history.run, heard=None, ended=False) == history.now + 24 * HOUR


def test_the_last_attempt_is_never_fenced_before_there_is_one_or_in_a_dry_run() -> None:
    assert last_collection_due_at(History().run, heard=None, ended=False) is None
    dry = History().configured(retention=RetentionPolicy(keep_last=1, dry_run=True)).started()
    assert last_collection_due_at(dry.run, heard=None, ended=True) is None


def test_an_attempt_that_still_writes_has_left_nothing(history: History) -> None:
    old = {f"{folder(300, 2).path}/__0_0.distcp": history.now - HOUR}
    young = {f"{folder(400, 2).path}/__0_0.distcp": history.now}
    assert left_by_last(history.run, old, now=history.now)
    assert not left_by_last(history.run, old | young, now=history.now)
    assert not left_by_last(history.run, {f"{folder(300, 1).path}/__0_0.distcp": history.now}, now=history.now)


def test_of_the_probes_folder_only_what_is_old_is_deleted() -> None:
    now = BEGINNING + 2 * HOUR
    mine = "_probe/0123456789abcdef"
    modified = {f"{mine}/created": BEGINNING, f"{mine}/listed": now, "_probe/notes.txt": BEGINNING}
    assert old_probes(modified, now=now) == (f"{mine}/created",)


def test_the_collection_is_due_when_the_running_attempt_is_older_than_the_grace(history: History) -> None:
    attempt = history.run.attempt
    assert attempt is not None
    assert collection_due_at(history.run) == attempt.started_at + HOUR


def test_there_is_nothing_to_collect_before_the_second_attempt_or_in_a_dry_run() -> None:
    history = History()
    assert collection_due_at(history.run) is None
    assert collection_due_at(history.started().run) is None
    dry = RetentionPolicy(keep_last=1, dry_run=True)
    assert collection_due_at(history.started().configured(retention=dry).run) is None


def test_without_a_retention_policy_leftovers_are_kept_for_an_hour() -> None:
    history = History().started().started()
    assert found(history, folder(100, 1), age=dt.timedelta(minutes=59)) == ()
    assert found(history, folder(100, 1), age=HOUR) == (folder(100, 1).path,)


def test_an_upload_is_abandoned_even_in_a_folder_that_was_committed(history: History) -> None:
    committed = parse_save_folder(history.snapshot(100).commit.path)
    assert abandoned(history.run, committed, history.now - HOUR, now=history.now)
    assert not abandoned(history.run, folder(100, 2), history.now - HOUR, now=history.now)


def test_below_a_folder_with_a_log_of_its_own_only_snapshots_are_ours(history: History) -> None:
    """A checkpoint that the drop-in saved into step-200, and what a killed attempt of ours left there."""
    left = f"{folder(200, 1).path}/__0_0.distcp"
    modified = {left: history.now - 2 * HOUR}
    assert orphaned(history.run, modified, now=history.now) == (left,)
    modified["step-200/_log/00000000000000000001.json"] = history.now
    assert orphaned(history.run, modified, now=history.now) == ()


def test_leftovers_are_looked_for_again_because_a_late_writer_may_add_some(history: History) -> None:
    first = collection_due_at(history.run)
    assert first is not None
    assert collection_due_at(history.run, last=first) == first + HOUR
