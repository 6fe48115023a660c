"""Noticing that the watch died, and what it missed."""

from __future__ import annotations

from checkpoint_operator.model import Key
from checkpoint_operator.sightings import Sightings

OLD, NEW = Key("training", "old"), Key("training", "new")


def shown(*keys: Key) -> Sightings:
    sightings = Sightings()
    for key in keys:
        sightings.show(key)
    return sightings


def test_a_watch_that_shows_everything_is_not_blind() -> None:
    sightings = shown(OLD, NEW)
    for _ in range(3):
        assert sightings.compare(sightings.shown, {OLD, NEW}) == set()
        assert not sightings.blind


def test_a_checkpoint_that_two_listings_have_and_the_watch_never_showed_makes_it_blind() -> None:
    sightings = shown(OLD)
    sightings.compare(sightings.shown, {OLD, NEW})
    assert not sightings.blind
    sightings.compare(sightings.shown, {OLD, NEW})
    assert sightings.blind
    sightings.show(NEW)
    sightings.compare(sightings.shown, {OLD, NEW})
    assert not sightings.blind


def test_a_checkpoint_created_while_the_listing_was_on_its_way_is_not_forgotten() -> None:
    sightings = shown(OLD)
    before = sightings.shown
    sightings.show(NEW)
    assert sightings.compare(before, {OLD}) == set()
    for _ in range(2):
        sightings.compare(sightings.shown, {OLD, NEW})
    assert not sightings.blind


def test_a_deletion_that_the_watch_missed_is_found_by_the_next_listing_once() -> None:
    sightings = shown(OLD, NEW)
    assert sightings.compare(sightings.shown, {NEW}) == {OLD}
    assert sightings.compare(sightings.shown, {NEW}) == set()
