"""What the demo measured, and whether that is what we promise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of one demo run.

    Attributes:
        moved: Whether the evicted pod's node could not take the replacement.
        evicted_at_step: The last step that the evicted pod finished.
        restored_step: The step of the snapshot its replacement continued from.
        seconds_eviction_to_first_step: From `kubectl drain` to the first step that the replacement finished.
        tensors_compared: Parameters and optimizer tensors that both runs hold.
    """

    nodes: tuple[str, str]
    moved: bool
    evicted_at_step: int
    restored_step: int
    lost_steps: int
    snapshots_committed: int
    tensors_compared: int
    bit_identical: bool
    seconds_to_cluster: float
    seconds_eviction_to_first_step: float
    seconds_total: float

    def problems(self) -> list[str]:
        """Every expectation that does not hold, as a sentence; empty for a good run."""
        expectations = {
            "the replacement ran on another node": self.nodes[0] != self.nodes[1] or not self.moved,
            "the evicted pod had made steps": self.evicted_at_step > 0,
            "the replacement continued from a snapshot": self.restored_step > 0,
            "no more was lost than lay between snapshots": self.lost_steps
            == self.evicted_at_step - self.restored_step
            >= 0,
            "several snapshots were committed": self.snapshots_committed >= 2,
            "every tensor is bit-identical to the undisturbed run": self.bit_identical and self.tensors_compared > 0,
        }
        return [f"it does not hold that {text}" for text, holds in expectations.items() if not holds]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
