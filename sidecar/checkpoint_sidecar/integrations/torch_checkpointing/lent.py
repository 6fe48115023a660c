"""Finds the memory of tensors behind what torch writes, so that a file is stored from there without a copy."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from checkpoint_sidecar.training.dcp.memory import as_buffer, has_memory


class LentMemory:
    """The host memory of the tensors in a state, which must not change while a file is written.

    Args:
        state: Nested dicts, lists and tuples, as for ``torch.save``.
    """

    def __init__(self, state: object) -> None:
        leaves = (getattr(leaf, "_local_tensor", leaf) for leaf in tree_leaves(state))  # of a DTensor
        storages = (
            leaf.untyped_storage()
            for leaf in leaves
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and has_memory(leaf)
        )
        self._storages = {storage.data_ptr(): storage for storage in storages}
        self._starts = sorted(self._storages)

    def find(self, view: memoryview) -> memoryview | None:
        """Return the same bytes as a view that keeps their tensor alive; None if they belong to no tensor of the state.

        Args:
            view: Bytes in memory that may be reused after the call.
        """
        address = np.frombuffer(view, np.uint8).ctypes.data
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        storage = self._storages[self._starts[place]]
        start = address - storage.data_ptr()
        if start + view.nbytes > storage.nbytes():
            return None
        return as_buffer(torch.empty(0, dtype=torch.uint8).set_(storage))[start : start + view.nbytes]
