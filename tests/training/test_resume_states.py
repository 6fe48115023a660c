"""Random trees of state come back equal into objects whose fresh state is another tree."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from checkpoint_sidecar import PerRank
from training.resuming import Job, attempt, differences, frozen, save_untrained
from training.states import Held, states

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = 500 if os.environ.get("CHECKPOINT_FAULTS") == "long" else 25


# Names of our own, and those that meet when they are joined with dots or told apart with a tilde.
NAMES = st.sampled_from(["__packed__", "__form__", "__packed__~", "a", "a~", "b", "a.b", "a.b~", "b~~", ""])
TREES = st.recursive(st.none(), lambda below: st.dictionaries(NAMES, below, max_size=3), max_leaves=8)


@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 2**32), other=st.integers(0, 2**32))
def test_any_state_comes_back_equal(seed: int, other: int) -> None:
    shared, own = states(seed), states(seed + 1)
    expected = frozen(shared), frozen(own)
    objects = {"shared": Held(shared), "own": PerRank(Held(own)), "net": nn.Linear(2, 2)}
    mine, theirs = Held(states(other + 1)), Held(states(other))
    fresh = {"shared": theirs, "own": PerRank(mine), "net": nn.Linear(2, 2)}
    with tempfile.TemporaryDirectory() as folder:
        save_untrained(lambda: Job(objects, lambda _: None), f"file://{folder}/run")
        attempt(lambda: Job(fresh, lambda _: None), f"file://{folder}/run", 0)
    found = theirs.state, mine.state
    assert not list(differences(expected, found))


@settings(max_examples=EXAMPLES)
@given(tree=TREES)
@example(tree={"__packed__": {"a": None}})
@example(tree={"__form__": None, "__packed__~": None, "__packed__": None})
@example(tree={"a": {"b": None}, "a.b": None, "a.b~": None})
@example(tree={"a.b~": None, "a": None, "a~": {"b": None}})
def test_large_tensors_come_back_under_whatever_names(tree: Any) -> None:
    def state(first: int) -> Any:
        numbers = iter(range(first, first + 1000))

        def filled(below: Any) -> Any:
            if below is None:
                return torch.full((200, 101), float(next(numbers)))
            return {name: filled(each) for name, each in below.items()}

        return filled(tree)

    saved = {"shared": Held(state(0)), "own": PerRank(Held(state(500)))}
    mine, theirs = Held(state(1000)), Held(state(1000))
    fresh = {"shared": theirs, "own": PerRank(mine)}
    with tempfile.TemporaryDirectory() as folder:
        save_untrained(lambda: Job(saved, lambda _: None), f"file://{folder}/run")
        attempt(lambda: Job(fresh, lambda _: None), f"file://{folder}/run", 0)
    found = theirs.state, mine.state
    assert not list(differences((state(0), state(500)), found))
