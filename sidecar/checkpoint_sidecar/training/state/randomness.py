"""The random number generators of a rank, as one object of the application's state."""

from __future__ import annotations

import random
import sys
from typing import Any, ClassVar

import torch


class RandomState:
    """Saves and restores this rank's generators: torch's on CPU and current GPU, Python's, and NumPy's if imported.

    Each rank has its own. A rank without saved generators (there are more ranks than saved them) keeps its seeds.

    >>> Checkpointer({"model": model, "optim": optim, "random": RandomState()}, url=...)
    """

    per_rank: ClassVar[bool] = True
    at_first_step: ClassVar[bool] = True

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state()
        if (numpy := sys.modules.get("numpy")) is not None:
            kind, keys, *rest = numpy.random.get_state()
            state["numpy"] = [kind, keys.tolist(), *rest]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        random.setstate(state["python"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        if "numpy" in state and (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.set_state(tuple(state["numpy"]))
