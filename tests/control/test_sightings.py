"""Noticing that the watch died, and what it missed."""

from __future__ import annotations

import pytest

from checkpoint_operator.model.observed import Key
from checkpoint_operator.process.watchdog import Sightings, Version

OLD, NEW = Key("training", "old"), Key("training", "new")
FIRST = Version("11111111", 1)


def shown(*keys: Key) -> Sightings:
    sightings = Sightings()
    for key in keys:
        sightings.show(key, FIRST)
    return sightings


def listed(*keys: Key) -> dict[Key, Version]:
    return dict.fromkeys(keys, FIRST)


def test_a_watch_that_shows_everything_is_not_blind() -> None:
    sightings = shown(OLD, NEW)
    for _ in range(3):
        assert sightings.compare(sightings.shown, listed(OLD, NEW)) == set()
        assert not sightings.blind


def test_a_checkpoint_that_two_listings_have_and_the_watch_never_showed_makes_it_blind() -> None:
    sightings = shown(OLD)
    sightings.compare(sightings.shown, listed(OLD, NEW))
    assert not sightings.blind
    sightings.compare(sightings.shown, listed(OLD, NEW))
    assert sightings.blind
    sightings.show(NEW, FIRST)
    sightings.compare(sightings.shown, listed(OLD, NEW))
    assert not sightings.blind


def test_a_checkpoint_created_while_the_listing_was_on_its_way_is_not_forgotten() -> None:
    sightings = shown(OLD)
    before = sightings.shown
    sightings.show(NEW, FIRST)
    assert sightings.compare(before, listed(OLD)) == set()
    for _ in range(2):
        sightings.compare(sightings.shown, listed(OLD, NEW))
    assert not sightings.blind


def test_a_deletion_that_the_watch_missed_is_found_by_the_next_listing_once() -> None:
    sightings = shown(OLD, NEW)
    assert sightings.compare(sightings.shown, listed(NEW)) == {OLD}
    assert sightings.compare(sightings.shown, listed(NEW)) == set()


@pytest.mark.parametrize(
    ("now", "blind"),
    [
        pytest.param(Version("11111111", 2), True, id="a change of its spec"),
        pytest.param(Version("22222222", 1), True, id="another one under its name"),
        pytest.param(FIRST, False, id="no change at all"),
    ],
)
def test_a_watch_that_showed_a_checkpoint_once_is_blind_when_listings_go_on_with(now: Version, blind: bool) -> None:
    sightings = shown(OLD)
    for _ in range(2):
        sightings.compare(sightings.shown, {OLD: now})
    assert sightings.blind is blind
    sightings.show(OLD, now)
    sightings.compare(sightings.shown, {OLD: now})
    assert not sightings.blind


def test_a_watch_that_is_ahead_of_the_listing_is_not_blind() -> None:
    sightings = shown(OLD)
    sightings.show(OLD, Version(FIRST.uid, 3))
    for _ in range(2):
        sightings.compare(sightings.shown, listed(OLD))
    assert not sightings.blind
