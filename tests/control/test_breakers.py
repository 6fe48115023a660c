"""Stores that do not answer are probed now and then, and no tenant can make a working store look down to others."""

from __future__ import annotations

import itertools

from checkpoint_operator.fairness.breakers import (
    FAILURES,
    FIRST_SECONDS,
    LONGEST_SECONDS,
    MOST_SECONDS,
    Breakers,
    Open,
    Permit,
)

STORE = "store"


class World:
    """Breakers with a clock, and the requests that tenants make."""

    def __init__(self) -> None:
        self.now = 0.0
        self.recovered: list[object] = []
        self.breakers = Breakers(clock=lambda: self.now, recovered=self.recovered.append)

    def asks(self, tenant: str, *, fails: bool) -> bool:
        """Whether the store was asked at all."""
        answer = self.breakers.ask(STORE, tenant)
        if isinstance(answer, Open):
            return False
        self.breakers.report(answer, "silence" if fails else "")
        return True

    def fail(self, tenant: str, times: int = FAILURES) -> None:
        for _ in range(times):
            assert self.asks(tenant, fails=True)


def test_after_some_failures_in_a_row_nothing_is_asked_until_a_probe() -> None:
    world = World()
    world.fail("team")
    answer = world.breakers.ask(STORE, "team")
    assert isinstance(answer, Open)
    assert answer.cause == "silence"
    assert FIRST_SECONDS / 2 <= answer.seconds <= FIRST_SECONDS
    world.now += FIRST_SECONDS
    assert world.asks("team", fails=False)
    assert world.recovered == [STORE]
    assert world.asks("team", fails=True), "one failure does not open it"


def test_a_success_in_between_keeps_it_closed() -> None:
    world = World()
    for _ in range(10):
        world.fail("team", FAILURES - 1)
        assert world.asks("team", fails=False)


def test_one_probe_at_a_time_and_ever_more_seldom() -> None:
    world = World()
    world.fail("team")
    probes = []
    for second in range(7200):
        world.now = float(second)
        if world.asks("team", fails=True):
            probes.append(second)
    gaps = [later - sooner for sooner, later in itertools.pairwise(probes)]
    assert max(gaps) <= LONGEST_SECONDS + 1
    assert len(probes) < 60
    world.now += LONGEST_SECONDS
    first = world.breakers.ask(STORE, "team")
    assert isinstance(first, Permit)
    assert isinstance(world.breakers.ask(STORE, "team"), Open), "another one asks already"


def test_a_probe_that_is_never_heard_of_again_is_followed_by_another() -> None:
    world = World()
    world.fail("team")
    world.now += LONGEST_SECONDS
    assert isinstance(world.breakers.ask(STORE, "team"), Permit)
    world.now += LONGEST_SECONDS
    assert isinstance(world.breakers.ask(STORE, "team"), Permit)


def test_newcomers_learn_from_the_failures_of_others() -> None:
    world = World()
    world.fail("team")
    assert not world.asks("newcomer", fails=True)


def test_a_tenant_that_reached_a_store_lately_continues_whatever_others_report() -> None:
    world = World()
    assert world.asks("sound", fails=False)
    world.fail("hostile")
    for _ in range(50):
        assert world.asks("sound", fails=False)
        world.now += 1


def test_failures_that_began_before_it_opened_do_not_lengthen_the_wait() -> None:
    world = World()
    permits = [world.breakers.ask(STORE, "team") for _ in range(30)]
    for permit in permits:
        assert isinstance(permit, Permit)
        world.breakers.report(permit, "silence")
    world.now += FIRST_SECONDS
    assert isinstance(world.breakers.ask(STORE, "team"), Permit)


def test_a_server_that_others_reach_is_not_down_for_newcomers() -> None:
    world = World()
    assert world.asks("sound", fails=False)
    world.fail("hostile")
    assert not world.asks("hostile", fails=True)
    assert world.asks("newcomer", fails=True)


def test_a_crowd_comes_back_one_after_the_other_and_no_tenant_waits_for_long() -> None:
    world = World()
    world.fail("team")
    waits = []
    for _ in range(10_000):
        answer = world.breakers.ask(STORE, "team")
        assert isinstance(answer, Open)
        waits.append(answer.seconds)
    assert waits[:1000] == sorted(waits[:1000])
    assert waits[999] - waits[0] > 400
    assert max(waits) <= MOST_SECONDS
