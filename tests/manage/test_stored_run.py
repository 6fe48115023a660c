"""A run is found, listed and read through ``open_run``, with few requests and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_sidecar import AmbiguousSelectorError, RunNotFoundError, SnapshotNotFoundError, StoreSettings, open_run
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import RunClaimed
from checkpoint_sidecar.core.policy import KeepBest, Policy, RetentionPolicy
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.opening import open_store
from doubles.counting import CountingStore
from doubles.memory import MemoryStore
from support.builders import OWNER, History
from support.longlogs import compact, write_log
from support.stored import stored

BEST = RetentionPolicy(keep_last=2, keep_best=(KeepBest("loss"),))


def training() -> History:
    """Three commits, of which the second is the best."""
    history = History().configured(retention=BEST).started()
    for step, loss in ((100, "3"), (200, "1"), (300, "2")):
        history.committed(step, metrics={"loss": loss})
    return history.verified(100, 200, 300)


def ids(snapshots: tuple[Snapshot, ...]) -> tuple[str, ...]:
    return tuple(snapshot.id for snapshot in snapshots)


def test_a_run_shows_what_its_log_says() -> None:
    history = training()
    run = StoredRun(stored(history))
    assert run.refresh() == history.run
    assert (run.owner, run.managed, run.policy.retention) == (OWNER, True, BEST)
    assert [attempt.number for attempt in run.attempts] == [1]
    assert ids(run.snapshots()) == history.ids(100, 200, 300)
    assert (run.latest, run.best) == (history.snapshot(300), history.snapshot(200))
    assert run.at_step(100) == history.snapshot(100)
    assert run.at_step(150) is None
    assert set(run.retention().keep) == set(history.ids(100, 200, 300)) - set(run.retention().retire)
    assert set(run.retention().retire) == {history.id(100)}


def test_the_log_is_read_at_the_first_use_and_then_on_request_only() -> None:
    history = training()
    store = CountingStore(stored(history))
    run = StoredRun(store)
    assert not store.requests
    assert run.latest == history.snapshot(300)
    requests = store.requests.total()
    assert (run.latest, len(run.snapshots())) == (history.snapshot(300), 3)
    assert store.requests.total() == requests
    assert run.refresh() == history.run
    assert store.requests.total() == requests + 1


def test_only_all_lists_what_is_retired_purged_or_rejected() -> None:
    history = training().retired(100).purge_started(100).purged(100).started().committed(250, attempt=1)
    run = StoredRun(stored(history))
    assert ids(run.snapshots()) == history.ids(200, 300)
    assert ids(run.snapshots(all=True)) == history.ids(100, 200, 300, 250)


@pytest.mark.parametrize(("selector", "step"), [("latest", 300), ("", 300), ("best", 200), ("100", 100), (100, 100)])
def test_a_selector_finds_its_snapshot(selector: str | int, step: int) -> None:
    history = training()
    assert StoredRun(stored(history)).find(selector) == history.snapshot(step)


def test_an_id_or_an_unambiguous_start_of_one_finds_its_snapshot() -> None:
    history = training().started().restored().committed(300, metrics={"loss": "5"}, replaces="")
    run = StoredRun(stored(history))
    wanted = history.id(200)
    assert run.find(wanted).id == run.find(wanted[:-3]).id == wanted
    with pytest.raises(AmbiguousSelectorError, match=r"300-1-.*, 300-2-"):
        run.find("300-")


def test_a_step_of_two_branches_means_the_one_of_the_lineage() -> None:
    history = training().rollback(100).started().restored().committed(300)
    run = StoredRun(stored(history))
    assert run.find(300).commit.attempt == 2
    history = training().rollback(100).started().restored().committed(200)
    assert StoredRun(stored(history)).find(300).commit.attempt == 1


@pytest.mark.parametrize("selector", ["latest", "best", "7", "nothing-1"])
def test_what_is_not_there_is_said_by_name(selector: str) -> None:
    with pytest.raises(SnapshotNotFoundError, match=f"@{selector}: "):
        StoredRun(stored(History().started())).find(selector)


def test_the_best_without_the_metric_says_which_metric() -> None:
    history = History().configured(retention=BEST).started().committed(100)
    with pytest.raises(SnapshotNotFoundError, match="metric loss"):
        StoredRun(stored(history)).find("best")


def test_no_run_is_an_error_that_says_so() -> None:
    with pytest.raises(RunNotFoundError, match="no run log"):
        _ = StoredRun(MemoryStore()).latest
    deleted = History().started().committed(100).adopted(OWNER.deleted)
    store = stored(deleted)
    store.delete(layout.log_key(number) for number in range(1, deleted.run.head))
    with pytest.raises(RunNotFoundError, match="deleted"):
        StoredRun(store).refresh()


def test_a_run_that_begins_later_is_found_by_the_same_object() -> None:
    store = MemoryStore()
    run = StoredRun(store)
    with pytest.raises(RunNotFoundError):
        run.refresh()
    history = training()
    stored(history, store)
    assert run.refresh().newest == history.run.newest


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("after", [0, 150, 200, 2350, 2499, 2500])
def test_the_story_is_read_from_any_entry_on(compacted: bool, after: int) -> None:
    store = MemoryStore()
    write_log(store, 2500)
    if compacted:
        assert compact(store) > 0
    assert [entry.number for entry in StoredRun(store).entries(after=after)] == [*range(after + 1, 2501)]


def test_the_story_of_a_run_begins_after_an_earlier_one_was_deleted() -> None:
    history = training().adopted(OWNER.deleted)
    store = stored(history)
    store.delete(layout.log_key(number) for number in range(1, history.run.head))
    second = RunLog(store, writer="test")
    second.append(lambda _: RunClaimed(OWNER))
    assert [entry.number for entry in StoredRun(store).entries()] == [history.run.head + 1]


def test_a_long_list_of_snapshots_takes_few_requests() -> None:
    kept = MemoryStore()
    write_log(kept, 2_402, policy=Policy())
    compact(kept)
    store = CountingStore(kept)
    assert len(StoredRun(store).snapshots()) > 1_000
    assert store.requests.total() <= 10, dict(store.requests)


def test_open_run_takes_urls_settings_and_filesystems(tmp_path: Path) -> None:
    history = training()
    url = f"file://{tmp_path}/run"
    stored(history, open_store(StoreSettings(url)))
    assert open_run(url).url == url
    for run in (open_run(url), open_run(StoreSettings(url))):
        assert run.refresh().newest == history.run.newest
