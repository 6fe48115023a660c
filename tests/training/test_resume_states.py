"""Random trees of state come back equal into objects whose fresh state is another tree."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from checkpoint_sidecar import PerRank
from training.resuming import Job, attempt, differences, frozen, save_untrained
from training.states import Held, states

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = 500 if os.environ.get("CHECKPOINT_FAULTS") == "long" else 25


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), other=st.integers(0, 2**32))
def test_any_state_comes_back_equal(seed: int, other: int) -> None:
    shared, own = states(seed), states(seed + 1)
    expected = frozen(shared), frozen(own)
    objects = {"shared": Held(shared), "own": PerRank(Held(own)), "net": nn.Linear(2, 2)}
    fresh = {"shared": Held(states(other)), "own": PerRank(Held(states(other + 1))), "net": nn.Linear(2, 2)}
    with tempfile.TemporaryDirectory() as folder:
        save_untrained(lambda: Job(objects, lambda _: None), f"file://{folder}/run")
        attempt(lambda: Job(fresh, lambda _: None), f"file://{folder}/run", 0)
    found = fresh["shared"].state, fresh["own"].wrapped.state
    assert not list(differences(expected, found))
