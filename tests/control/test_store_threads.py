"""Blocking calls that fail, panic, or do not return."""

from __future__ import annotations

import asyncio
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import TypeVar

import pytest

from checkpoint_operator.fairness import store_threads
from checkpoint_operator.fairness.slots import Caps, Slots, TenantSlot
from checkpoint_operator.fairness.store_threads import AbandonedError, ClientPanicError, run_in_thread
from checkpoint_operator.gather.redaction import Redactor, working_on
from checkpoint_operator.model.observed import Key

T = TypeVar("T")


class PanicException(BaseException):
    """What a Rust extension raises: no ``Exception``."""


def run(call: Callable[[], T], *, seconds: float = 10.0, slot: TenantSlot | None = None) -> T:
    async def act() -> T:
        result = await run_in_thread(call, seconds=seconds, slot=slot)
        await asyncio.sleep(0)
        return result

    return asyncio.run(act())


def raising(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def test_a_result_and_an_error_come_back_as_they_are() -> None:
    assert run(lambda: 7) == 7
    with pytest.raises(ValueError, match="no"):
        run(raising(ValueError("no")))


@pytest.mark.parametrize("error", [PanicException("the key is hunter22"), StopIteration(), SystemExit(3)], ids=repr)
def test_a_panic_becomes_an_ordinary_error_that_quotes_nothing(error: BaseException) -> None:
    with pytest.raises(ClientPanicError, match=type(error).__name__) as caught:
        run(raising(error))
    assert "hunter22" not in str(caught.value)


def test_a_call_that_does_not_return_is_given_up_and_keeps_its_slot_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_threads, "GRACE_SECONDS", 0.0)
    silence = threading.Event()

    async def act() -> None:
        slots = Slots(Caps(tenant=1))
        slot = slots.take("team", "store")
        with pytest.raises(AbandonedError):
            await run_in_thread(lambda: silence.wait(30), seconds=0.05, slot=slot)
        slot.release()  # the pass is over
        assert not slots.room("team", "store")
        silence.set()
        while not slots.room("team", "store"):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(act(), timeout=20))


def test_an_error_that_is_kept_holds_no_data_that_was_being_read() -> None:
    class Manifest:
        pass

    alive: list[weakref.ref[Manifest]] = []

    def read() -> None:
        manifest = Manifest()
        alive.append(weakref.ref(manifest))
        try:
            int("not a number")
        except ValueError as error:
            raise KeyError("no manifest") from error

    with pytest.raises(KeyError) as kept:
        run(read)
    assert [each() for each in alive] == [None]
    assert "in read" in "".join(traceback.format_exception(kept.value))


def test_a_thread_works_on_the_checkpoint_of_its_pass() -> None:
    redactor = Redactor()
    redactor.remember(Key("team", "run"), {"AWS_SECRET_ACCESS_KEY": "hunter22"})

    async def act() -> str:
        with working_on(Key("team", "run")):
            return await run_in_thread(lambda: redactor.clean("hunter22"), seconds=10)

    assert asyncio.run(act()) == "[redacted]"
