"""Noticing that the watch died, and what it missed."""

from __future__ import annotations

import pytest

from checkpoint_operator.model.observed import Key
from checkpoint_operator.process.watchdog import Version, Watchdog

OLD, NEW = Key("training", "old"), Key("training", "new")
FIRST = Version("11111111", 1)


def shown(*keys: Key) -> Watchdog:
    watchdog = Watchdog()
    for key in keys:
        watchdog.show(key, FIRST)
    return watchdog


def listed(*keys: Key) -> dict[Key, Version]:
    return dict.fromkeys(keys, FIRST)


def test_a_watch_that_shows_everything_is_not_blind() -> None:
    watchdog = shown(OLD, NEW)
    for _ in range(3):
        assert watchdog.compare(watchdog.shown, listed(OLD, NEW)) == set()
        assert not watchdog.blind


def test_a_checkpoint_that_two_listings_have_and_the_watch_never_showed_makes_it_blind() -> None:
    watchdog = shown(OLD)
    watchdog.compare(watchdog.shown, listed(OLD, NEW))
    assert not watchdog.blind
    watchdog.compare(watchdog.shown, listed(OLD, NEW))
    assert watchdog.blind
    watchdog.show(NEW, FIRST)
    watchdog.compare(watchdog.shown, listed(OLD, NEW))
    assert not watchdog.blind


def test_a_checkpoint_created_while_the_listing_was_on_its_way_is_not_forgotten() -> None:
    watchdog = shown(OLD)
    before = watchdog.shown
    watchdog.show(NEW, FIRST)
    assert watchdog.compare(before, listed(OLD)) == set()
    for _ in range(2):
        watchdog.compare(watchdog.shown, listed(OLD, NEW))
    assert not watchdog.blind


def test_a_deletion_that_the_watch_missed_is_found_by_the_next_listing_once() -> None:
    watchdog = shown(OLD, NEW)
    assert watchdog.compare(watchdog.shown, listed(NEW)) == {OLD}
    assert watchdog.compare(watchdog.shown, listed(NEW)) == set()


@pytest.mark.parametrize(
    ("now", "blind"),
    [
        pytest.param(Version("11111111", 2), True, id="a change of its spec"),
        pytest.param(Version("22222222", 1), True, id="another one under its name"),
        pytest.param(FIRST, False, id="no change at all"),
    ],
)
def test_a_watch_that_showed_a_checkpoint_once_is_blind_when_listings_continue_with(now: Version, blind: bool) -> None:
    watchdog = shown(OLD)
    for _ in range(2):
        watchdog.compare(watchdog.shown, {OLD: now})
    assert watchdog.blind is blind
    watchdog.show(OLD, now)
    watchdog.compare(watchdog.shown, {OLD: now})
    assert not watchdog.blind


def test_a_watch_that_is_ahead_of_the_listing_is_not_blind() -> None:
    watchdog = shown(OLD)
    watchdog.show(OLD, Version(FIRST.uid, 3))
    for _ in range(2):
        watchdog.compare(watchdog.shown, listed(OLD))
    assert not watchdog.blind
