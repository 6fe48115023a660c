"""SIGTERM is noticed when it arrives, whatever the main thread is doing, and by this process only."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from checkpoint_sidecar.training.signals import Terminated, TerminationWatch
from checkpoint_sidecar.training.vote import Stop


@pytest.fixture
def watch() -> Iterator[TerminationWatch]:
    watch = TerminationWatch(30.0)
    watch.install()
    yield watch
    watch.remove()


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_nothing_is_to_stop_before_sigterm(watch: TerminationWatch) -> None:
    assert watch.stop() is None


def test_sigterm_starts_the_grace_period(watch: TerminationWatch) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert eventually(lambda: watch.stop() is not None)
    stop = watch.stop()
    assert stop is not None
    assert 25 < stop.remaining_seconds <= 30
    assert not stop.repeated


@pytest.mark.parametrize(
    ("seconds_later", "repeated"),
    [
        pytest.param(0.5, False, id="the-init-process-and-torchrun-both-pass-it-on"),
        pytest.param(5.0, True, id="one-rank-was-asked-twice"),
    ],
)
def test_a_second_sigterm_counts_unless_it_is_an_echo_of_the_first(seconds_later: float, repeated: bool) -> None:
    now = [100.0]
    read: list[float] = []

    def clock() -> float:
        read.append(now[0])
        return now[0]

    watch = TerminationWatch(30.0, clock=clock)
    watch.install()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert eventually(lambda: read == [100.0])
        now[0] += seconds_later
        os.kill(os.getpid(), signal.SIGTERM)
        assert eventually(lambda: len(read) == 2)
        assert eventually(lambda: watch.stop() == Stop(30.0 - seconds_later, repeated=repeated))
    finally:
        watch.remove()


def test_sigterm_is_noticed_although_a_former_listener_is_gone() -> None:
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    watch = TerminationWatch(30.0)
    watch.install()
    ear.close()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert eventually(lambda: watch.stop() is not None)
    finally:
        watch.remove()
        signal.set_wakeup_fd(before)
        mouth.close()


def test_the_grace_period_runs_while_the_main_thread_sits_in_c_code(watch: TerminationWatch) -> None:
    sent = []

    def send() -> None:
        time.sleep(0.05)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    began = time.monotonic()
    # One call into OpenSSL that no signal interrupts: a Python handler would run only after it.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_500_000)
    busy_until = time.monotonic()
    sender.join()
    stop = watch.stop()
    assert stop is not None
    noticed = time.monotonic() - (30.0 - stop.remaining_seconds)
    assert busy_until - began > 0.3, "the call was too short to prove anything"
    assert noticed < busy_until - 0.1
    assert noticed == pytest.approx(sent[0], abs=0.1)


def test_a_former_handler_is_still_called_and_comes_back() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        former = signal.getsignal(signal.SIGTERM)
        watch = TerminationWatch(30.0)
        watch.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert eventually(lambda: bool(heard))
        watch.remove()
        watch.remove()
        assert signal.getsignal(signal.SIGTERM) is former
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_forked_child_dies_of_its_own_sigterm_and_does_not_tell_its_parent(watch: TerminationWatch) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(told, b".")
        time.sleep(30)
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    time.sleep(0.1)
    assert watch.stop() is None


def test_sigterm_is_noticed_although_asyncio_has_taken_the_descriptor(watch: TerminationWatch) -> None:
    async def end() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert watch.stop() is not None

    asyncio.run(end())


def test_sigterm_is_noticed_although_another_handler_was_installed_since(watch: TerminationWatch) -> None:
    heard: list[int] = []
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    signal.set_wakeup_fd(mouth.fileno())
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    watch.keep()
    os.kill(os.getpid(), signal.SIGTERM)
    assert eventually(lambda: watch.stop() is not None)
    assert heard == [signal.SIGTERM]
    signal.set_wakeup_fd(-1)
    ear.close()
    mouth.close()


def test_a_start_leaves_at_once_and_the_former_handler_is_called() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    watch = TerminationWatch(30.0)
    watch.install(starting=True)
    try:
        with pytest.raises(Terminated) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (caught.value.saved_step, heard) == (None, [signal.SIGTERM])
    finally:
        watch.remove()
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("first", [0, 1])
def test_watches_that_are_removed_in_any_order_leave_nothing_behind(first: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    watches = [TerminationWatch(30.0), TerminationWatch(30.0)]
    for watch in watches:
        watch.install()
    watches[first].remove()
    os.kill(os.getpid(), signal.SIGTERM)
    assert eventually(lambda: watches[1 - first].stop() is not None)
    watches[1 - first].remove()
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_asked_for_has_no_deadline_of_its_own_and_keeps_that_of_sigterm(watch: TerminationWatch) -> None:
    watch.ask()
    stop = watch.stop()
    assert stop is not None
    assert (stop.save, stop.limited) == (True, False)
    os.kill(os.getpid(), signal.SIGTERM)
    assert eventually(lambda: bool((stop := watch.stop()) and stop.limited and stop.save))


def test_outside_the_main_thread_sigterm_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    former = signal.getsignal(signal.SIGTERM)
    watch = TerminationWatch(30.0)
    thread = threading.Thread(target=watch.install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is former
    assert "SIGTERM is not watched" in caplog.text


def test_termination_exits_like_a_process_killed_by_sigterm() -> None:
    assert Terminated(7, 5).code == 143
