"""The copy that a background save uploads is the state as it was, in every version of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import staging

from checkpoint_sidecar.training.staging import HostCopy


def as_it_is(_: pytest.MonkeyPatch) -> None:
    pass


def before_2_9(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions without a stager that keeps its buffers."""
    monkeypatch.delattr(staging, "DefaultStager", raising=False)


def as_in_2_12(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stager closes itself after the first copy, and cannot copy again."""
    stage = staging.DefaultStager.stage

    def stage_once(self: Any, state: Any) -> Any:
        staged = stage(self, state)
        self.close()
        return staged

    monkeypatch.setattr(staging.DefaultStager, "stage", stage_once)


@pytest.mark.parametrize("version", [as_it_is, before_2_9, as_in_2_12])
def test_each_copy_is_the_state_as_it_was(version: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    version(monkeypatch)
    copy = HostCopy()
    state = {"x": torch.zeros(4), "nested": [{"y": torch.zeros(2).t()}], "step": 0, "betas": (0.9, 0.95)}
    for step in (1, 2, 3):
        state["x"].fill_(step)
        state["nested"][0]["y"].fill_(-step)
        state["step"] = step
        copied = copy(state)
        state["x"].zero_()
        state["nested"][0]["y"].zero_()
        assert torch.equal(copied["x"], torch.full((4,), float(step)))
        assert torch.equal(copied["nested"][0]["y"], torch.full((2,), float(-step)))
        assert (copied["step"], copied["betas"]) == (step, (0.9, 0.95))
    copy.close()
