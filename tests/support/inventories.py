"""Inventories of metadata that no save has made."""

from __future__ import annotations

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from checkpoint_sidecar.training.dcp.inventory import Inventory
from checkpoint_sidecar.training.dcp.receipts import stored_inventory


def inventory_of(metadata: Metadata) -> Inventory | None:
    """The inventory, or None if the metadata has more to say than an inventory can."""
    stored = metadata.storage_data or {}
    return stored_inventory(metadata, [[WriteResult(index, place.length, place) for index, place in stored.items()]])
