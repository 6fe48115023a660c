"""The work queue: each key at most once at a time, nothing forgotten, failures tried again."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from checkpoint_operator.fairness.slots import Caps, Slots, TenantSlot
from checkpoint_operator.model.observed import Key
from checkpoint_operator.process.work_queue import Backoff, CallOutcome, WorkQueue

QUICK = Backoff(first=0.01, longest=0.02)
Work = Callable[[str, bool], Awaitable[float | CallOutcome | None]]


class Named(WorkQueue[Key]):
    """A queue whose keys are named ``<namespace>/<name>``, or by one word in a namespace of that name."""

    def ask(self, name: str) -> None:
        self.add(key(name))


def key(name: str) -> Key:
    namespace, _, rest = name.partition("/")
    return Key(namespace, rest or name)


def run(
    work: Work, script: Callable[[Named], Awaitable[None]], *, caps: Caps | None = None, spacing: float = 0
) -> None:
    async def call(key: Key, thorough: bool, _: TenantSlot) -> CallOutcome:
        ended = await work(key.name, thorough)
        return ended if isinstance(ended, CallOutcome) else CallOutcome(ended)

    async def play() -> None:
        queue = Named(call, slots=Slots(caps), backoff=QUICK, spacing=spacing)
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

    async def script(queue: Named) -> None:
        for _ in range(50):
            queue.ask("a")
            queue.ask("b")
        await asyncio.sleep(0.01)
        for _ in range(50):
            queue.ask("a")
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

    async def script(queue: Named) -> None:
        for key in "abcdefgh":
            queue.ask(key)
        await asyncio.sleep(0.1)

    run(work, script, caps=Caps(total=3))
    assert most == 3


@pytest.mark.parametrize("unexpected", [False, True], ids=["reported", "unexpected"])
def test_a_failed_call_is_repeated_thoroughly(unexpected: bool) -> None:
    calls: list[bool] = []

    async def work(_: str, thorough: bool) -> float | CallOutcome | None:
        calls.append(thorough)
        if len(calls) == 2 and unexpected:
            raise ValueError("a mistake")
        if len(calls) == 2:
            return CallOutcome(failure="not now")
        return 0.01 if len(calls) == 1 else None

    async def script(queue: Named) -> None:
        queue.ask("a")
        await asyncio.sleep(0.2)

    run(work, script)
    assert calls == [True, False, True], "asked, looked at after the interval, repeated after the failure"


def test_an_event_during_a_wait_is_served_at_once() -> None:
    calls: list[bool] = []

    async def work(_: str, thorough: bool) -> float:
        calls.append(thorough)
        return 3600

    async def script(queue: Named) -> None:
        queue.ask("a")
        await asyncio.sleep(0.02)
        queue.ask("a")
        await asyncio.sleep(0.02)

    run(work, script)
    assert calls == [True, True]


def test_stopping_lets_what_is_running_end_and_starts_nothing_else() -> None:
    ended: list[str] = []

    async def work(key: str, _: bool) -> None:
        await asyncio.sleep(0.05)
        ended.append(key)

    async def script(queue: Named) -> None:
        queue.ask("a")
        queue.ask("b")
        await asyncio.sleep(0.01)

    run(work, script, caps=Caps(total=1))
    assert ended == ["a"]


def test_a_key_that_asks_while_the_queue_stops_is_not_served() -> None:
    calls: list[str] = []

    async def work(key: Key, _: bool, __: TenantSlot) -> CallOutcome:
        calls.append(key.name)
        await asyncio.sleep(0.2)
        return CallOutcome(0.0)

    async def play() -> None:
        queue = Named(work, spacing=0)
        queue.start()
        queue.ask("slow")
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(queue.stop(grace=5))
        await asyncio.sleep(0.01)
        queue.ask("late")
        await stopping

    asyncio.run(play())
    assert calls == ["slow"]


def test_waits_double_up_to_a_limit_and_differ_by_chance() -> None:
    backoff = Backoff(first=1, longest=60)
    for failures, full in ((1, 1), (2, 2), (5, 16), (7, 60), (500, 60)):
        waits = [backoff.wait(failures) for _ in range(50)]
        assert all(full / 2 <= wait <= full for wait in waits)
        assert len(set(waits)) > 1


class Panic(BaseException):
    """As Rust extensions raise it: no ``Exception``."""


def test_whatever_a_call_raises_it_is_repeated_and_the_others_continue() -> None:
    calls: Counter[str] = Counter()

    async def work(key: str, _: bool) -> float | None:
        calls[key] += 1
        if key == "bad" and calls[key] < 40:
            raise Panic
        return None

    async def script(queue: Named) -> None:
        queue.ask("bad")
        await asyncio.sleep(0.1)
        queue.ask("good")
        await asyncio.sleep(1)

    run(work, script, caps=Caps(total=2))
    assert calls["good"] == 1
    assert calls["bad"] > 20


def test_namespaces_take_turns_however_many_keys_one_of_them_has() -> None:
    order: list[str] = []

    async def work(name: str, _: bool) -> None:
        order.append(name)

    async def script(queue: Named) -> None:
        for number in range(100):
            queue.ask(f"greedy/{number}")
        queue.ask("modest/one")
        queue.ask("modest/two")
        await asyncio.sleep(0.1)

    run(work, script, caps=Caps(total=1))
    assert order.index("one") <= 2
    assert order.index("two") <= 4
    assert len(order) == 102


def test_keys_of_a_busy_store_wait_without_keeping_the_others_of_their_namespace_waiting() -> None:
    served: list[str] = []
    most = 0
    stuck: set[str] = set()
    release = asyncio.Event()

    async def call(key: Key, _: bool, slot: TenantSlot) -> CallOutcome:
        nonlocal most
        store = key.name.partition("-")[0]
        if not slot.move(store):
            return CallOutcome(waits_for=store)
        if store == "silent":
            stuck.add(key.name)
            most = max(most, len(stuck))
            await release.wait()
            stuck.discard(key.name)
        served.append(key.name)
        return CallOutcome()

    async def play() -> None:
        queue = Named(call, slots=Slots(Caps(tenant=2)), backoff=QUICK, spacing=0)
        queue.start()
        for number in range(60):
            queue.ask(f"team/silent-{number}")
        await asyncio.sleep(0.05)
        queue.ask("team/sound-1")
        await asyncio.sleep(0.05)
        assert served == ["sound-1"]
        release.set()
        await asyncio.sleep(0.3)
        await queue.stop(grace=1)

    asyncio.run(asyncio.wait_for(play(), timeout=10))
    assert most == 2
    assert len(served) == 61


def test_a_thread_that_does_not_return_keeps_its_slot_and_no_more() -> None:
    async def play() -> None:
        slots = Slots(Caps(tenant=1))
        slot = slots.take("team", "store")
        slot.hold()
        slot.release()
        assert not slots.room("team", "store")
        assert slots.room("team", "another")
        assert slots.room("others", "store")
        slot.release()
        assert slots.room("team", "store")

    asyncio.run(play())


def test_a_key_that_never_stops_asking_is_served_at_intervals() -> None:
    calls: list[float] = []

    async def work(_: str, __: bool) -> float:
        calls.append(asyncio.get_running_loop().time())
        return 3600

    async def script(queue: Named) -> None:
        for _ in range(60):
            queue.ask("a")
            await asyncio.sleep(0.005)

    run(work, script, spacing=0.1)
    assert 3 <= len(calls) <= 30
    assert all(second - first > 0.09 for first, second in itertools.pairwise(calls))
