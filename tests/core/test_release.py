"""A snapshot is released from quarantine: what was found against it is forgotten, once per request."""

from __future__ import annotations

import pytest

from checkpoint_sidecar.core.lineage import quarantined, restore_plan
from checkpoint_sidecar.core.log import QuarantineReleased
from checkpoint_sidecar.core.policy import RestorePolicy
from support.builders import History


@pytest.fixture
def damaged() -> History:
    """Two snapshots, of which the newer one was verified, and then found damaged twice."""
    history = History().configured(restore=RestorePolicy(max_failures_per_snapshot=2))
    return history.started().committed(100, 200).verified(100, 200).found_damaged(200, 200)


def test_what_was_found_against_it_is_forgotten_and_what_was_verified_before_as_well(damaged: History) -> None:
    assert quarantined(damaged.run, damaged.snapshot(200))
    damaged.released(200)
    found = damaged.snapshot(200)
    assert (found.failures, found.evidence, found.verified) == (0, "", "None")
    assert not quarantined(damaged.run, found)
    assert restore_plan(damaged.run, None).candidates == damaged.ids(200, 100)


def test_a_request_acts_once_and_the_next_damage_counts(damaged: History) -> None:
    damaged.released(200).found_damaged(200, 200).released(200)
    assert quarantined(damaged.run, damaged.snapshot(200))
    assert restore_plan(damaged.run, None).candidates == damaged.ids(100)
    damaged.released(200, "release-2")
    assert not quarantined(damaged.run, damaged.snapshot(200))
    assert damaged.snapshot(200).releases == ("release-1", "release-2")


def test_a_sound_snapshot_loses_nothing_and_the_request_is_used_up(damaged: History) -> None:
    damaged.released(100)
    assert damaged.snapshot(100).verified == "Sizes"
    damaged.found_damaged(100).released(100)
    assert damaged.snapshot(100).failures == 1


def test_releasing_a_snapshot_without_a_commit_changes_nothing(damaged: History) -> None:
    before = dict(damaged.run.snapshots)
    damaged.append(QuarantineReleased("900-1-zzzzzzzz", "release-1"))
    assert dict(damaged.run.snapshots) == before
