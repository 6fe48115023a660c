"""Where a run begins is chosen once, holds until the first commit, and means nothing after it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from checkpoint_sidecar.core.errors import FencedError
from checkpoint_sidecar.core.log import Unknown, WarmStartChosen, WarmStartFinished
from checkpoint_sidecar.core.policy import RestorePolicy
from checkpoint_sidecar.core.replay import replay
from checkpoint_sidecar.core.warm_start import answers, choose, choose_for, finish, may_start_warm, warm_start_of
from support.builders import History

ASKED = "s3://training/llama@best"
FIRST = WarmStartChosen(ASKED, "s3://training/llama", "900-1-abcdefgh", 900)
SECOND = WarmStartChosen(ASKED, "s3://training/llama", "950-1-abcdefgh", 950)
OTHER = WarmStartChosen("s3://training/other", "s3://training/other", "10-1-abcdefgh", 10)


@pytest.fixture
def begun() -> History:
    """A new run whose first attempt has chosen and loaded a snapshot of another run."""
    outcome = WarmStartFinished(1, FIRST.url, FIRST.snapshot, FIRST.step, restored=True)
    return History().append(FIRST).started().append(outcome)


def test_a_later_start_uses_the_same_snapshot_until_something_was_committed(begun: History) -> None:
    assert warm_start_of(begun.started().run, 2) == FIRST
    assert choose_for(begun.run, 2, SECOND) is None, "the same words mean the snapshot that they meant first"
    begun.committed(901)
    assert begun.snapshot(901).live
    assert begun.snapshot(901).commit.parent == ""
    assert warm_start_of(begun.run, 2) is warm_start_of(begun.started().run, 3) is None


def test_other_words_choose_again_and_only_before_the_first_commit(begun: History) -> None:
    assert choose(begun.run, OTHER) == OTHER
    assert begun.append(OTHER).run.warm_start == OTHER
    begun.committed(11)
    assert choose(begun.run, FIRST) is None
    assert begun.append(FIRST).run.warm_start == OTHER


def test_the_chosen_snapshot_may_be_asked_for_by_its_own_address() -> None:
    assert answers(FIRST, "s3://training/llama@900-1-abcdefgh", "")
    assert not answers(FIRST, ASKED, "model"), "another part is another request"
    assert not answers(None, ASKED, "")


def test_an_attempt_that_serves_a_request_begins_nowhere_else(begun: History) -> None:
    begun.configured().configured(restore=RestorePolicy(mode="None")).started()
    assert not may_start_warm(begun.run, 2)
    assert warm_start_of(begun.run, 2) is None


def test_a_fenced_attempt_neither_chooses_nor_reports(begun: History) -> None:
    begun.started()
    for call in (lambda: choose_for(begun.run, 1, OTHER), lambda: finish(begun.run, WarmStartFinished(1, FIRST.url))):
        with pytest.raises(FencedError):
            call()


def test_what_a_restart_loaded_is_known_by_attempt(begun: History) -> None:
    begun.started()
    (first, second) = begun.run.attempts.values()
    assert first.warm_start is not None
    assert first.warm_start.restored
    assert second.warm_start is None


def test_a_reader_that_knows_neither_kind_sees_the_same_snapshots(begun: History) -> None:
    begun.committed(901).committed(902)
    run = replay(
        msgspec.structs.replace(entry, body=Unknown("New"))
        if isinstance(entry.body, WarmStartChosen | WarmStartFinished)
        else entry
        for entry in begun.entries
    )
    assert not run.unknown_critical
    assert run.snapshots == begun.run.snapshots
    assert replace(begun.run, warm_start=None, attempts={}) == replace(run, attempts={})
