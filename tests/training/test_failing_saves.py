"""A failed save: what it does to training, requests and the log, and what is said of one that may be committed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from checkpoint_sidecar import Checkpointer, FencedError
from checkpoint_sidecar.attempt import session, setbacks
from checkpoint_sidecar.core.errors import ConfigurationError, StoreError
from checkpoint_sidecar.core.log import (
    AttemptStarted,
    EvictionNoticed,
    PodIdentity,
    SaveFailed,
    SaveRequested,
    SnapshotCommitted,
)
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.core.schedule import given_up, retry_delay
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer as module
from doubles.faulty_server import Effect, Fault, faulty_server
from localcluster.objectstore import REGION, ObjectStore
from training.checkpointer_runs import EVERY_STEP, RunStorage, await_saves, started

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

FULL = "the disk is full"


class Upload:
    """What uploads of a checkpointer meet with: so many failures, or all of them."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def __call__(self, key: str) -> None:
        if key.endswith(".distcp") and self.failures:
            self.failures -= 1
            raise StoreError("upload", key, FULL)


Watching = Callable[[Callable[[str], None]], None]


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(setbacks, "POLL_SECONDS", 0.02)


def commits(storage: RunStorage) -> list[tuple[int, str]]:
    return [(commit.step, commit.trigger) for commit in storage.bodies(SnapshotCommitted)]


def step(checkpointer: Checkpointer, *steps: int) -> None:
    """Finish steps, with time for the save of each to end."""
    for each in steps:
        checkpointer.step(each)
        await_saves()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# Training


def test_training_continues_after_a_failed_save_and_saves_when_the_next_one_is_due(
    storage: RunStorage, on_upload: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    on_upload(Upload(1))
    with started(storage, save=SavePolicy(every_steps=2, every_seconds=None)) as checkpointer:
        step(checkpointer, 1, 2, 3)
        assert FULL in caplog.text
        assert not list(storage.store.list("step-"))
        step(checkpointer, 4)
    assert commits(storage) == [(4, "Schedule")]


def test_so_many_failures_in_a_row_end_training(storage: RunStorage, on_upload: Watching) -> None:
    on_upload(Upload(100))
    policy = SavePolicy(every_steps=1, every_seconds=None, max_failures=3)
    with pytest.raises(StoreError, match=FULL), started(storage, save=policy) as checkpointer:  # noqa: PT012
        step(checkpointer, 1, 2, 3)
        with pytest.raises(StoreError, match=FULL):
            step(checkpointer, 4)
        raise StoreError("reached", "the end", FULL)
    assert commits(storage) == []


def test_a_commit_in_between_ends_a_row_of_failures(storage: RunStorage, on_upload: Watching) -> None:
    upload = Upload(2)
    on_upload(upload)
    policy = SavePolicy(every_steps=1, every_seconds=None, max_failures=3)
    with started(storage, save=policy) as checkpointer:
        step(checkpointer, 1, 2, 3)
        upload.failures = 2
        step(checkpointer, 4, 5, 6)
    assert [number for number, _ in commits(storage)] == [3, 6]


@pytest.mark.parametrize("in_the_log", [False, True], ids=["from-the-argument", "from-the-log"])
def test_by_policy_the_first_failure_ends_training(storage: RunStorage, on_upload: Watching, in_the_log: bool) -> None:
    policy = SavePolicy(every_steps=1, every_seconds=None, on_failure="Raise")
    if in_the_log:
        storage.restored_step()
        storage.configure(save=policy)
        policy = EVERY_STEP
    on_upload(Upload(1))
    with started(storage, save=policy) as checkpointer:
        step(checkpointer, 1)
        with pytest.raises(StoreError, match=FULL):
            checkpointer.step(2)


def test_a_save_that_the_training_code_asks_for_always_raises(storage: RunStorage, on_upload: Watching) -> None:
    on_upload(Upload(1))
    with started(storage) as checkpointer:
        with pytest.raises(StoreError, match=FULL):
            checkpointer.save(1)
        checkpointer.save(2)
    assert commits(storage) == [(2, "Manual")]


def test_a_fenced_attempt_is_not_borne(storage: RunStorage) -> None:
    with pytest.raises(FencedError), started(storage, save=EVERY_STEP) as checkpointer:  # noqa: PT012
        storage.append(AttemptStarted(2, 1))
        for number in range(1, 200):
            step(checkpointer, number)
    assert commits(storage) == []


def test_a_lasting_failure_stops_training(storage: RunStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        started(storage, save=EVERY_STEP) as checkpointer,
        pytest.raises(ConfigurationError, match="record metrics loss"),
    ):
        checkpointer.step(1, metrics={"loss": "low"})
    assert commits(storage) == []


def test_the_end_raises_what_no_later_save_made_up_for(storage: RunStorage, on_upload: Watching) -> None:
    on_upload(Upload(1))
    policy = SavePolicy(every_steps=2, every_seconds=None)
    with pytest.raises(StoreError, match=FULL), started(storage, save=policy) as checkpointer:
        step(checkpointer, 1, 2, 3)
    assert commits(storage) == []


@pytest.mark.parametrize(
    ("policy", "failures", "steps", "seconds", "stops"),
    [
        pytest.param(SavePolicy(), 1, 10, 60, False, id="a-failure"),
        pytest.param(SavePolicy(), 4, 10, 60, False, id="four"),
        pytest.param(SavePolicy(), 5, 10, 60, True, id="five"),
        pytest.param(SavePolicy(max_failures=9), 5, 10, 60, False, id="five-of-nine"),
        pytest.param(SavePolicy(on_failure="Raise"), 1, 10, 60, True, id="the-policy-is-to-raise"),
        pytest.param(SavePolicy(), 3, 10, 2701, True, id="three-intervals"),
        pytest.param(SavePolicy(every_seconds=60), 3, 10, 899, False, id="an-outage-of-minutes"),
        pytest.param(SavePolicy(every_seconds=60), 3, 10, 901, True, id="an-outage-of-a-quarter-of-an-hour"),
        pytest.param(SavePolicy(every_steps=5, every_seconds=None), 3, 16, 901, True, id="three-intervals-of-steps"),
        pytest.param(SavePolicy(every_steps=5, every_seconds=None), 3, 16, 60, False, id="quick-steps"),
        pytest.param(SavePolicy(every_seconds=None), 3, 10**6, 10**6, False, id="no-cadence"),
    ],
)
def test_when_failed_saves_end_training(
    policy: SavePolicy, failures: int, steps: int, seconds: float, stops: bool
) -> None:
    reason = given_up(policy, failures=failures, unsaved_steps=steps, unsaved_seconds=seconds)
    assert bool(reason) is stops


def test_the_first_retry_comes_at_once_and_later_ones_ever_later() -> None:
    delays = [retry_delay(failures) for failures in range(9)]
    assert delays[:3] == [0, 0, 5]
    assert delays == sorted(delays)
    assert delays[-1] == 60


# What the operator hears of it


def test_a_row_of_failures_is_one_entry_of_the_log(storage: RunStorage, on_upload: Watching) -> None:
    upload = Upload(3)
    on_upload(upload)
    with started(storage, save=EVERY_STEP) as checkpointer:
        step(checkpointer, 1, 2)
        until(lambda: bool(storage.bodies(SaveFailed)))
        step(checkpointer, 3)
        checkpointer.step(4)
        assert storage.run.attempts[1].save_failure is not None
        await_saves()
        step(checkpointer, 5)
        assert storage.run.attempts[1].save_failure is None
        upload.failures = 1
        step(checkpointer, 6, 7, 8)
    (first, *others) = storage.bodies(SaveFailed)
    assert (first.attempt, FULL in first.message) == (1, True)
    # The second row ended so soon that it may not have been reported.
    assert len(others) <= 1
    assert [number for number, _ in commits(storage)] == [4, 5, 7, 8]


# Requests


def test_a_requested_save_that_failed_is_tried_again(storage: RunStorage, on_upload: Watching) -> None:
    on_upload(Upload(1))
    with started(storage) as checkpointer:
        storage.append(SaveRequested("before-the-upgrade", 1))
        session = checkpointer._session
        assert session is not None
        until(lambda: session.state.save_request != "")
        step(checkpointer, 1, 2, 3, 4)
    assert commits(storage) == [(2, "Request")]
    assert storage.bodies(SnapshotCommitted)[0].save_request == "before-the-upgrade"


def test_a_save_for_an_eviction_that_failed_is_tried_again(storage: RunStorage, on_upload: Watching) -> None:
    on_upload(Upload(1))
    with started(storage) as checkpointer:
        storage.append(EvictionNoticed(1, PodIdentity("llama-0", "u"), "drained"))
        session = checkpointer._session
        assert session is not None
        until(lambda: session.state.eviction is not None)
        step(checkpointer, 1, 2, 3, 4)
    assert commits(storage) == [(2, "Eviction")]


# Saves that may be committed


class Panic(BaseException):
    """As pyo3 raises it when Rust panics."""


class LosesTheReply:
    """A store whose commits arrive, and whose client raises after it."""

    def __init__(self, store: Any, error: BaseException, *, verb: str = "put_if_absent", part: str = "_log/") -> None:
        self._store, self._error, self._verb, self._part = store, error, verb, part
        self.armed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _then(self, verb: str, key: str) -> None:
        if self.armed and verb == self._verb and self._part in key:
            self.armed = False
            raise self._error

    def put_if_absent(self, key: str, data: Any) -> None:
        self._store.put_if_absent(key, data)
        self._then("put_if_absent", key)

    def put(self, key: str, data: Any) -> None:
        self._store.put(key, data)
        self._then("put", key)

    def get(self, key: str, **options: Any) -> Any:
        found = self._store.get(key, **options)
        self._then("get", key)
        return found


ERRORS = [
    pytest.param(RuntimeError("the event loop is closed"), id="a-foreign-error"),
    pytest.param(Panic("called Option::unwrap() on a None value"), id="a-panic"),
    pytest.param(MemoryError(), id="no-memory"),
]


@pytest.mark.parametrize("verb", ["put_if_absent", "get"])
@pytest.mark.parametrize("error", ERRORS)
def test_no_save_is_called_failed_that_is_committed(
    storage: RunStorage, monkeypatch: pytest.MonkeyPatch, error: BaseException, verb: str
) -> None:
    storage.restored_step()
    part = f"_log/{storage.run.head + 2:020}"
    store = LosesTheReply(storage.store, error, verb=verb, part=part)
    monkeypatch.setattr(module, "open_store", lambda _: store)
    with started(storage) as checkpointer:
        store.armed = True
        checkpointer.save(7)
    assert commits(storage) == [(7, "Manual")]


@pytest.mark.parametrize("error", ERRORS)
def test_what_fails_after_the_commit_is_no_failure_of_the_save(
    storage: RunStorage, monkeypatch: pytest.MonkeyPatch, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    store = LosesTheReply(storage.store, error, verb="put_if_absent", part="step-7/.metadata")
    monkeypatch.setattr(module, "open_store", lambda _: store)
    with started(storage) as checkpointer:
        store.armed = True
        checkpointer.save(7)
        await_saves()
    assert commits(storage) == [(7, "Manual")]
    assert "step 7 is saved, but its stock .metadata is not published" in caplog.text


# Ending by a signal of the job's own


def test_a_signal_of_the_jobs_own_saves_and_stops(storage: RunStorage) -> None:
    policy = SavePolicy(every_steps=None, every_seconds=None, on_termination=False)
    with pytest.raises(SystemExit) as caught, started(storage, save=policy) as checkpointer:  # noqa: PT012
        before = signal.signal(signal.SIGUSR1, lambda *_: checkpointer.save_and_stop())
        try:
            checkpointer.step(1)
            os.kill(os.getpid(), signal.SIGUSR1)
            checkpointer.step(2)
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert caught.value.code == 143
    assert commits(storage) == [(2, "Termination")]


def test_a_save_that_does_not_fit_before_the_jobs_limit_is_not_begun(
    storage: RunStorage, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit), started(storage) as checkpointer:  # noqa: PT012
        checkpointer.save_and_stop(within_seconds=1.0)
        checkpointer.step(2)
    assert commits(storage) == []
    assert "the steps after 0 are lost" in caplog.text


# A real store that is away for a while

HASTY = Timeouts(deadline_seconds=0.3, answer_seconds=10.0, body_seconds=10.0)


@pytest.mark.store
@pytest.mark.parametrize("effect", ["lose the request", (503, "ServiceUnavailable")], ids=["unreachable", "refusing"])
def test_an_outage_of_the_store_ends_no_training(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch, effect: Effect
) -> None:
    monkeypatch.setattr(module, "open_store", lambda settings: open_store(settings, timeouts=HASTY))
    keys = {name: object_store.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    policy = SavePolicy(every_steps=1, every_seconds=None, max_failures=100)
    with faulty_server(object_store.endpoint) as server:
        settings = StoreSettings(f"s3://{bucket}/run", server.endpoint, REGION, credentials=Credentials.of(keys))
        log = RunLog(open_store(settings), writer="test")
        with Checkpointer({"seen": [0]}, settings, save=policy) as checkpointer:
            checkpointer.restore()
            checkpointer.save(1)
            server.faults += [Fault(method, "", effect, times=10**9) for method in ("GET", "PUT", "POST", "HEAD")]
            number, over = 1, time.monotonic() + 5
            while time.monotonic() < over:
                number += 1
                checkpointer.step(number)
                time.sleep(0.05)
            server.forget()
            number += 1
            checkpointer.step(number)
            assert checkpointer.save(number + 1)
        run = log.refresh()
    assert max(snapshot.step for snapshot in run.snapshots.values()) == number + 1
    assert run.attempts[1].save_failure is None
    assert run.highest_attempt == 1
