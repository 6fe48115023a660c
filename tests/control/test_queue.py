"""The work queue: each key at most once at a time, nothing forgotten, failures tried again."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from checkpoint_operator.queue import Backoff, Retry, WorkQueue

QUICK = Backoff(first=0.01, longest=0.02)
Work = Callable[[str, bool], Awaitable[float | None]]


def run(
    work: Work, script: Callable[[WorkQueue[str]], Awaitable[None]], *, workers: int = 4, spacing: float = 0
) -> None:
    async def play() -> None:
        queue = WorkQueue(work, workers=workers, backoff=QUICK, spacing=spacing)
        queue.start()
        try:
            await script(queue)
        finally:
            await queue.stop(grace=1)

    asyncio.run(asyncio.wait_for(play(), timeout=10))


def test_a_key_is_never_worked_on_twice_at_the_same_time_and_bursts_become_one_call() -> None:
    active: Counter[str] = Counter()
    most: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    async def work(key: str, _: bool) -> None:
        active[key] += 1
        calls[key] += 1
        most[key] = max(most[key], active[key])
        await asyncio.sleep(0.02)
        active[key] -= 1

    async def script(queue: WorkQueue[str]) -> None:
        for _ in range(50):
            queue.add("a")
            queue.add("b")
        await asyncio.sleep(0.01)
        for _ in range(50):
            queue.add("a")
        await asyncio.sleep(0.1)

    run(work, script)
    assert most == {"a": 1, "b": 1}
    assert calls == {"a": 2, "b": 1}


def test_only_so_many_keys_are_worked_on_at_once() -> None:
    active: set[str] = set()
    most = 0

    async def work(key: str, _: bool) -> None:
        nonlocal most
        active.add(key)
        most = max(most, len(active))
        await asyncio.sleep(0.01)
        active.remove(key)

    async def script(queue: WorkQueue[str]) -> None:
        for key in "abcdefgh":
            queue.add(key)
        await asyncio.sleep(0.1)

    run(work, script, workers=3)
    assert most == 3


@pytest.mark.parametrize("error", [Retry("not now"), ValueError("a mistake")], ids=["asked for", "unexpected"])
def test_a_failed_call_is_repeated_thoroughly(error: Exception) -> None:
    calls: list[bool] = []

    async def work(_: str, thorough: bool) -> float | None:
        calls.append(thorough)
        if len(calls) == 2:
            raise error
        return 0.01 if len(calls) == 1 else None

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(0.2)

    run(work, script)
    assert calls == [True, False, True], "asked, looked at after the interval, repeated after the failure"


def test_an_event_during_a_wait_is_served_at_once() -> None:
    calls: list[bool] = []

    async def work(_: str, thorough: bool) -> float:
        calls.append(thorough)
        return 3600

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(0.02)
        queue.add("a")
        await asyncio.sleep(0.02)

    run(work, script)
    assert calls == [True, True]


def test_stopping_lets_what_is_running_end_and_starts_nothing_else() -> None:
    ended: list[str] = []

    async def work(key: str, _: bool) -> None:
        await asyncio.sleep(0.05)
        ended.append(key)

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        queue.add("b")
        await asyncio.sleep(0.01)

    run(work, script, workers=1)
    assert ended == ["a"]


def test_who_asks_while_the_queue_stops_is_not_served_any_more() -> None:
    calls: list[str] = []

    async def work(key: str, _: bool) -> float:
        calls.append(key)
        await asyncio.sleep(0.2)
        return 0.0

    async def play() -> None:
        queue = WorkQueue(work, workers=2, spacing=0)
        queue.start()
        queue.add("slow")
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(queue.stop(grace=5))
        await asyncio.sleep(0.01)
        queue.add("late")
        await stopping

    asyncio.run(play())
    assert calls == ["slow"]


def test_waits_double_up_to_a_limit_and_differ_by_chance() -> None:
    backoff = Backoff(first=1, longest=60)
    for failures, full in ((1, 1), (2, 2), (5, 16), (7, 60), (500, 60)):
        waits = [backoff.wait(failures) for _ in range(50)]
        assert all(full / 2 <= wait <= full for wait in waits)
        assert len(set(waits)) > 1


def test_a_hanging_call_shows_in_its_age() -> None:
    async def work(_: str, __: bool) -> None:
        await asyncio.sleep(0.1)

    async def script(queue: WorkQueue[str]) -> None:
        assert queue.oldest() < 0.01
        queue.add("a")
        await asyncio.sleep(0.06)
        assert queue.oldest() > 0.05
        assert queue.alive

    run(work, script)


def test_a_key_that_never_stops_asking_is_served_at_intervals() -> None:
    calls: list[float] = []

    async def work(_: str, __: bool) -> float:
        calls.append(asyncio.get_running_loop().time())
        return 3600

    async def script(queue: WorkQueue[str]) -> None:
        for _ in range(60):
            queue.add("a")
            await asyncio.sleep(0.005)

    run(work, script, spacing=0.1)
    assert 3 <= len(calls) <= 5
    assert all(second - first > 0.09 for first, second in itertools.pairwise(calls))
