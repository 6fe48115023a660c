"""The pace of large requests: a store that asks to slow down is obeyed, and then tried again."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.store.common.rate_limit import Pace, Pacer

AT_ONCE = 16


def refused(pace: Pace, under_way: int = AT_ONCE) -> Pace:
    return pace.after_overload(slowed=pace.slowed, under_way=under_way)


def successes(pace: Pace, number: int) -> Pace:
    for _ in range(number):
        pace = pace.after_success()
    return pace


def test_nothing_is_held_back_before_the_store_asks_for_it() -> None:
    assert Pace().allows(10_000)
    assert successes(Pace(), 3) == Pace()


def test_a_refusal_halves_what_was_under_way() -> None:
    pace = refused(Pace())

    assert pace.allows(AT_ONCE // 2 - 1)
    assert not pace.allows(AT_ONCE // 2)


def test_a_burst_of_refusals_halves_once() -> None:
    pace = first = Pace()
    for _ in range(AT_ONCE):
        pace = pace.after_overload(slowed=first.slowed, under_way=AT_ONCE)

    assert pace == refused(first)


def test_one_more_is_allowed_after_every_round_of_successes() -> None:
    pace = Pace(limit=4.0, slowed=1)

    assert not successes(pace, 3).allows(4)
    assert successes(pace, 5).allows(4)


@given(events=st.lists(st.booleans(), max_size=200))
def test_one_request_is_always_allowed_and_no_limit_is_forgotten(events: list[bool]) -> None:
    pace = Pace()
    for success in events:
        pace = pace.after_success() if success else refused(pace)
        assert pace.allows(0)
    assert math.isinf(pace.limit) == all(events)


def test_a_request_waits_until_another_has_ended() -> None:
    pacer = Pacer(lambda _: True)
    pacer.pace = Pace(limit=1.0, slowed=1)
    begun = threading.Event()

    def second() -> None:
        with pacer.permit(lambda: False):
            begun.set()

    thread = threading.Thread(target=second)
    with pacer.permit(lambda: False):
        thread.start()
        assert not begun.wait(0.2)
    assert begun.wait(5)
    thread.join()


def test_a_request_that_is_not_wanted_any_more_does_not_wait() -> None:
    pacer = Pacer(lambda _: True)
    pacer.pace = Pace(limit=1.0, slowed=1)

    with pacer.permit(lambda: False), pacer.permit(lambda: True):
        pass


def test_only_an_overload_slows_down() -> None:
    pacer = Pacer(lambda error: isinstance(error, TimeoutError))

    for failure in (ConnectionResetError, TimeoutError):
        with pytest.raises(failure), pacer.permit(lambda: False):
            raise failure
    assert pacer.pace == Pace(limit=1.0, slowed=1)
