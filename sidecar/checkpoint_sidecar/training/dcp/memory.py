"""Views of tensors as bytes, without a copy."""

from __future__ import annotations

from ctypes import c_char
from typing import Any

import torch


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is plain: of no subclass, neither sparse nor quantized, so that its elements are all of it."""
    return type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a memory of its own; one that wraps others has none."""
    try:
        return tensor.data_ptr() != 0
    except (NotImplementedError, RuntimeError):
        return False


def lies_in_order(tensor: torch.Tensor) -> bool:
    """Whether the memory of a plain tensor holds its elements as they are, in row-major order."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of a tensor in row-major order, as one dimension of bytes."""
    # Not by ``view(-1)``: with one element, a contiguous tensor may have any stride.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def as_buffer(tensor: torch.Tensor) -> memoryview:
    """Return a host tensor in row-major order as a buffer of bytes, for code that does not import torch.

    The tensor lives as long as the buffer. Unlike ``tensor.numpy()`` this leaves its storage resizable, as training may
    want it, and takes a third of the time.
    """
    memory: Any = (c_char * tensor.nbytes).from_address(tensor.data_ptr())
    memory.tensor = tensor
    return memoryview(memory).cast("B")
