"""The rate of large requests: a store that asks to slow down is obeyed, and then tried again."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.store.common.rate_limit import AimdLimit, AimdLimiter

AT_ONCE = 16


def refused(rate: AimdLimit, under_way: int = AT_ONCE) -> AimdLimit:
    return rate.after_overload(slowed=rate.slowed, under_way=under_way)


def successes(rate: AimdLimit, number: int) -> AimdLimit:
    for _ in range(number):
        rate = rate.after_success()
    return rate


def test_nothing_is_held_back_before_the_store_asks_for_it() -> None:
    assert AimdLimit().allows(10_000)
    assert successes(AimdLimit(), 3) == AimdLimit()


def test_a_refusal_halves_what_was_under_way() -> None:
    rate = refused(AimdLimit())

    assert rate.allows(AT_ONCE // 2 - 1)
    assert not rate.allows(AT_ONCE // 2)


def test_a_burst_of_refusals_halves_once() -> None:
    rate = first = AimdLimit()
    for _ in range(AT_ONCE):
        rate = rate.after_overload(slowed=first.slowed, under_way=AT_ONCE)

    assert rate == refused(first)


def test_one_more_is_allowed_after_every_round_of_successes() -> None:
    rate = AimdLimit(limit=4.0, slowed=1)

    assert not successes(rate, 3).allows(4)
    assert successes(rate, 5).allows(4)


@given(events=st.lists(st.booleans(), max_size=200))
def test_one_request_is_always_allowed_and_no_limit_is_forgotten(events: list[bool]) -> None:
    rate = AimdLimit()
    for success in events:
        rate = rate.after_success() if success else refused(rate)
        assert rate.allows(0)
    assert math.isinf(rate.limit) == all(events)


def test_a_request_waits_until_another_has_ended() -> None:
    limiter = AimdLimiter(lambda _: True)
    limiter.rate = AimdLimit(limit=1.0, slowed=1)
    begun = threading.Event()

    def second() -> None:
        with limiter.permit(lambda: False):
            begun.set()

    thread = threading.Thread(target=second)
    with limiter.permit(lambda: False):
        thread.start()
        assert not begun.wait(0.2)
    assert begun.wait(5)
    thread.join()


def test_a_request_that_is_not_wanted_any_more_does_not_wait() -> None:
    limiter = AimdLimiter(lambda _: True)
    limiter.rate = AimdLimit(limit=1.0, slowed=1)

    with limiter.permit(lambda: False), limiter.permit(lambda: True):
        pass


def test_only_an_overload_slows_down() -> None:
    limiter = AimdLimiter(lambda error: isinstance(error, TimeoutError))

    for failure in (ConnectionResetError, TimeoutError):
        with pytest.raises(failure), limiter.permit(lambda: False):
            raise failure
    assert limiter.rate == AimdLimit(limit=1.0, slowed=1)
