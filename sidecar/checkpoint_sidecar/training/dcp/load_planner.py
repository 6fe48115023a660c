"""DCP's load planner, with stricter checks that raise our errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_local_load_plan
from torch.distributed.checkpoint.planner import LoadPlan

from checkpoint_sidecar.core.errors import IncompatibleSnapshotError
from checkpoint_sidecar.training.dcp.compatibility import check_types
from checkpoint_sidecar.training.dcp.stored_items import stored_items


class StrictLoadPlanner(DefaultLoadPlanner):
    """Refuses a checkpoint that does not fit, on all ranks together, before any rank writes into a tensor.

    Raises (from DCP, wrapped; see ``failures.raising_ours``):
        IncompatibleSnapshotError: A tensor is missing, or has another shape, dtype or kind.
    """

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None  # set by set_up_planner
        subject = str(getattr(self.metadata.storage_meta, "checkpoint_id", "") or "checkpoint")
        metadata = stored_items(self.metadata).needed_by(self.state_dict)
        try:
            # torch's own method first checks whether torch 2.3 or older wrote the checkpoint, and concludes so from a
            # rank without a shard of some FSDP1 tensor. Snapshots are never that old.
            plan = create_default_local_load_plan(self.state_dict, metadata, not self.allow_partial_load)
        except (RuntimeError, ValueError) as error:
            raise IncompatibleSnapshotError("load the checkpoint", subject, str(error)) from error
        check_types(self.state_dict, metadata, subject=subject)
        return plan


class ItemPlanner(StrictLoadPlanner):
    """Loads items by their flat names, without flattening anything.

    Args:
        items: By name: a tensor to fill, or None for an object to read.
    """

    def __init__(self, items: Mapping[str, Any]) -> None:
        super().__init__(flatten_state_dict=False)
        self._items = items

    @property
    def loaded(self) -> dict[str, Any]:
        """After a load, the given tensors and the objects that were read."""
        return {name: self.state_dict[name] if each is None else each for name, each in self._items.items()}
