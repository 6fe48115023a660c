"""The memory budget: never exceeded, never stuck, and fair."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_sidecar.engine.budget import MemoryBudget, groups_within

LIMIT = 100


def waits(budget: MemoryBudget, count: int) -> threading.Event:
    """Ask for an allowance in another thread; the event is set when it was granted."""
    granted = threading.Event()

    def ask() -> None:
        budget.acquire(count)
        granted.set()

    threading.Thread(target=ask, daemon=True).start()
    return granted


def stays_unset(event: threading.Event) -> bool:
    return not event.wait(0.05)


@given(counts=st.lists(st.integers(0, 250), max_size=40), threads=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_it_is_never_exceeded_but_by_an_allowance_that_is_alone(counts: list[int], threads: int) -> None:
    budget = MemoryBudget(LIMIT)
    held: list[int] = []
    lock = threading.Lock()

    def work(count: int) -> None:
        budget.acquire(count)
        with lock:
            held.append(count)
            together = [each for each in held if each]
            assert sum(together) <= LIMIT or len(together) == 1
        time.sleep(0)
        with lock:
            held.remove(count)
        budget.release(count)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, counts))
    assert budget.used == 0


def test_what_does_not_fit_waits_until_enough_was_given_back() -> None:
    budget = MemoryBudget(LIMIT)
    budget.acquire(60)
    budget.acquire(30)
    granted = waits(budget, 40)
    assert stays_unset(granted)
    budget.release(30)
    assert granted.wait(5)
    assert budget.used == LIMIT


def test_more_than_the_limit_passes_alone() -> None:
    budget = MemoryBudget(LIMIT)
    budget.acquire(1)
    granted = waits(budget, 5 * LIMIT)
    assert stays_unset(granted)
    budget.release(1)
    assert granted.wait(5)


def test_small_requests_do_not_overtake_a_large_one_without_end() -> None:
    budget = MemoryBudget(LIMIT)
    budget.acquire(60)
    large = waits(budget, 80)
    assert stays_unset(large)
    small = waits(budget, 10)
    assert stays_unset(small)
    budget.release(60)
    assert large.wait(5)
    assert small.wait(5)


def test_a_request_that_was_given_up_blocks_no_other() -> None:
    budget = MemoryBudget(LIMIT)
    budget.acquire(60)

    def give_up() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        budget.acquire(70, meanwhile=give_up)
    budget.acquire(40)
    assert budget.used == LIMIT


@given(sizes=st.lists(st.integers(0, 250), max_size=40))
def test_groups_hold_everything_in_order_as_much_at_a_time_as_fits(sizes: list[int]) -> None:
    groups = list(groups_within(LIMIT, sizes, lambda size: size))
    assert [size for group in groups for size in group] == sizes
    assert all(sum(group) <= LIMIT or len(group) == 1 for group in groups)
    assert all(sum(group) + following[0] > LIMIT for group, following in itertools.pairwise(groups))
