"""Checkpoints for pods that are created: few reads, and never an answer from before the pod."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from checkpoint_operator.injection.lookup import REMEMBER_SECONDS, Lookup
from checkpoint_operator.injection.pods import Body
from checkpoint_operator.model.observed import Key

KEY = Key("team", "run")
FOUND = {"metadata": {"name": "run"}, "spec": {"storage": {"url": "s3://bucket/run"}}}


class Server:
    """Answers reads when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting: list[asyncio.Future[dict[str, Any] | None]] = []
        self.lookup = Lookup(self.read, clock=lambda: self.now)

    def read(self, _: Key) -> Awaitable[dict[str, Any] | None]:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return self.waiting[-1]

    def ask(self) -> asyncio.Task[Body | None]:
        return asyncio.create_task(self.lookup.find(KEY, bool))


def answered(future: asyncio.Future[dict[str, Any] | None], answer: dict[str, Any] | Exception | None) -> None:
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_the_pods_of_a_gang_share_one_read_and_later_ones_its_answer_for_a_moment() -> None:
    async def story() -> None:
        server = Server()
        gang = [server.ask() for _ in range(1000)]
        await settled()
        assert len(server.waiting) == 1
        answered(server.waiting[0], FOUND)
        assert await asyncio.gather(*gang) == [FOUND] * 1000
        server.now = REMEMBER_SECONDS * 0.9
        assert await server.ask() == FOUND
        assert len(server.waiting) == 1
        server.now = REMEMBER_SECONDS * 1.1
        later = server.ask()
        await settled()
        assert len(server.waiting) == 2
        answered(server.waiting[1], None)
        assert await later is None

    asyncio.run(story())


def test_that_a_checkpoint_is_missing_is_never_remembered() -> None:
    async def story() -> None:
        server = Server()
        first = server.ask()
        await settled()
        answered(server.waiting[0], None)
        assert await first is None
        second = server.ask()
        await settled()
        answered(server.waiting[1], FOUND)
        assert await second == FOUND

    asyncio.run(story())


def test_a_pod_does_not_rely_on_a_read_that_began_before_it_and_found_nothing() -> None:
    async def story() -> None:
        server = Server()
        early = server.ask()
        await settled()
        late = server.ask()  # its Checkpoint was created in between
        await settled()
        answered(server.waiting[0], None)
        assert await early is None
        await settled()
        assert len(server.waiting) == 2
        answered(server.waiting[1], FOUND)
        assert await late == FOUND

    asyncio.run(story())


def test_an_error_is_for_those_that_wait_and_the_next_one_reads_again() -> None:
    async def story() -> None:
        server = Server()
        gang = [server.ask() for _ in range(3)]
        await settled()
        answered(server.waiting[0], OSError("no answer"))
        assert [type(each) for each in await asyncio.gather(*gang, return_exceptions=True)] == [OSError] * 3
        again = server.ask()
        await settled()
        answered(server.waiting[1], FOUND)
        assert await again == FOUND

    asyncio.run(story())


def test_a_pod_that_is_given_up_does_not_end_the_read_of_the_others() -> None:
    async def story() -> None:
        server = Server()
        first, second = server.ask(), server.ask()
        await settled()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        answered(server.waiting[0], FOUND)
        assert await second == FOUND
        assert len(server.waiting) == 1

    asyncio.run(story())


def test_only_so_many_answers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoint_operator.injection.lookup.MOST_REMEMBERED", 10)

    async def read(key: Key) -> dict[str, Any]:
        return {"metadata": {"name": key.name}}

    async def story() -> int:
        lookup = Lookup(read, clock=lambda: 0.0)
        for number in range(1000):
            await lookup.find(Key("team", f"run-{number}"), bool)
        return len(lookup._known)

    assert asyncio.run(story()) == 10
