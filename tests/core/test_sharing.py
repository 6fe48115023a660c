"""How often a save has to store all of its bytes, and what that is worth when a file rots."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_sidecar.core.commits import MOST_SHARES, shares_of
from checkpoint_sidecar.core.layout import settled_name
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.core.shared_files import names_in
from checkpoint_sidecar.core.sharing import may_share
from doubles.memory import MemoryStore
from support.trainers import Trainer

NAMES = [settled_name(rank, number) for rank in range(2) for number in range(2)]


def files_of(snapshot: Snapshot) -> set[tuple[str, str]]:
    """The settled files that a snapshot needs, each with its holder."""
    shared = {(each.snapshot, name) for each in shares_of(snapshot.commit) for name in names_in(each.files)}
    return shared | {(snapshot.id, name) for name in {*NAMES} - {name for _, name in shared}}


def saved(every: int, changes: list[set[str]]) -> Run:
    """A run in which a save shares all that did not change since the one before, as often as it may."""
    trainer = Trainer(MemoryStore()).start()
    last: Snapshot | None = None
    for step, changed in enumerate(changes):
        shared = {}
        if last is not None and may_share(trainer.run, last, every):
            snapshots = trainer.run.snapshots
            shared = {name: snapshots[holder] for holder, name in files_of(last) if name not in changed}
        last = trainer.commit(step, settled={name: b"x" for name in NAMES if name not in shared}, shared=shared)
    return trainer.run


@pytest.mark.parametrize(
    ("every", "keyframes"),
    [
        pytest.param(1, [0, 1, 2, 3, 4, 5, 6], id="every save"),
        pytest.param(2, [0, 2, 4, 6], id="every other save"),
        pytest.param(3, [0, 3, 6], id="every third save"),
        pytest.param(64, [0], id="none again"),
    ],
)
def test_one_save_of_so_many_stores_everything(every: int, keyframes: list[int]) -> None:
    run = saved(every, [set()] * 7)
    assert [each.step for each in run.snapshots.values() if not shares_of(each.commit)] == keyframes


def test_the_first_save_shares_nothing() -> None:
    assert not may_share(Run(), None, 20)


def test_no_setting_lets_a_chain_grow_beyond_what_a_commit_can_list() -> None:
    run = saved(10 * MOST_SHARES, [set()] * (MOST_SHARES + 1))
    assert [each.step for each in run.snapshots.values() if not shares_of(each.commit)] == [0, MOST_SHARES]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.lists(st.sets(st.sampled_from(NAMES)), min_size=2, max_size=14))
def test_no_file_is_in_all_of_more_snapshots_than_there_are_from_keyframe_to_keyframe(
    every: int, more: int, changes: list[set[str]]
) -> None:
    kept = [files_of(each) for each in saved(every, changes).snapshots.values()]
    last = every + more  # as keepLast
    for end in range(last, len(kept) + 1):
        assert set.intersection(*kept[end - last : end]) == set()
