"""Short digests of values, equal on two ranks that hold the same value, whatever the order of their sets and dicts.

Digests are compared between processes. Unlike the bytes of a pickle, they therefore do not depend on addresses, hash
seeds, or on which equal strings happen to be one object.
"""

from __future__ import annotations

import copyreg
import hashlib
import random
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from crc32c import crc32c
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from checkpoint_sidecar.training.dcp.memory import as_buffer, as_bytes, is_plain, lies_in_order
from checkpoint_sidecar.training.state.values import MAGIC, unpack

WHOLE_BYTES = 64 * 1024
"""Values up to this size are read completely; larger ones are sampled."""

_SAMPLES = 16
_SAMPLE_BYTES = 1024
_MOST_PARTS = 20_000
"""Objects of more parts are not compared, because walking them would take longer than writing them."""

_NAMED = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)


def of_tensor(tensor: torch.Tensor, seed: int = 0) -> int | None:
    """Return the digest of a tensor's values, or None if they cannot be read.

    Args:
        seed: Selects the parts of a large tensor to read.
    """
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    tensor = tensor.detach()
    if is_plain(tensor):
        return _of_plain(tensor, seed)
    return _digest_of(tensor, seed)


def of_object(value: Any, seed: int = 0) -> int | None:
    """Return the digest of any other value, or None if it is too large or cannot be taken apart."""
    return _digest_of(value, seed)


def _digest_of(value: Any, seed: int) -> int | None:
    try:
        return int.from_bytes(_Walk(seed).of(value)[:8])
    except Exception:  # noqa: BLE001 - classes of the parts may raise anything
        return None


def _of_plain(tensor: torch.Tensor, seed: int) -> int | None:
    if tensor.is_meta:
        return None
    if not lies_in_order(tensor):
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
    if tensor.is_cpu:
        return _checksum(as_buffer(tensor), seed)
    there = as_bytes(tensor)
    if len(there) > WHOLE_BYTES:
        # One transfer for all samples.
        start, step = _sampling(len(there), seed)
        there = there[start:].unfold(0, _SAMPLE_BYTES, step)[:_SAMPLES].contiguous()
    return int(crc32c(as_buffer(there.cpu())))


def _checksum(memory: memoryview, seed: int) -> int:
    size = len(memory)
    if size <= WHOLE_BYTES:
        return int(crc32c(memory))
    start, step = _sampling(size, seed)
    checksum = 0
    for at in range(start, start + _SAMPLES * step, step):
        checksum = crc32c(memory[at : at + _SAMPLE_BYTES], checksum)
    return checksum


@lru_cache(maxsize=1024)
def _sampling(size: int, seed: int) -> tuple[int, int]:
    """Return the first sample's offset and the distance of samples of ``size`` bytes, one in each equal section."""
    section = size // _SAMPLES
    return random.Random(seed).randrange(section - _SAMPLE_BYTES), section  # noqa: S311 - every rank must choose alike


class _TooLargeError(Exception):
    pass


class _Walk:
    """Takes a value apart as pickle does, and digests the parts in a canonical order."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._left = _MOST_PARTS
        self._above: list[int] = []

    def of(self, value: Any) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise _TooLargeError
        if value is None or isinstance(value, bool | float | complex | str | range | slice):
            return _hash(type(value).__qualname__, repr(value))
        if isinstance(value, int):
            return _hash(type(value).__qualname__, hex(value))
        if isinstance(value, bytes) and value.startswith(MAGIC):
            return self._packed(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._memory("bytes", memoryview(value).cast("B"))
        if isinstance(value, _NAMED):
            return _hash(getattr(value, "__module__", None), getattr(value, "__qualname__", repr(value)))
        if id(value) in self._above:
            return _hash("seen above", len(self._above) - self._above.index(id(value)))
        self._above.append(id(value))
        try:
            return self._of_parts(value)
        finally:
            self._above.pop()

    def _of_parts(self, value: Any) -> bytes:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, torch.Tensor):
            return self._tensor(kind, value)
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
            return _hash(kind, value.dtype.str, value.shape, self._memory("array", data))
        if type(value) in (list, tuple):
            return _hash(kind, *map(self.of, value))
        if isinstance(value, Mapping) and isinstance(value, dict):
            return _hash(kind, *sorted(self.of(key) + self.of(each) for key, each in value.items()))
        if isinstance(value, AbstractSet):
            return _hash(kind, *sorted(map(self.of, value)))
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return _hash(kind, reduced)
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        parts = (make, arguments, state, list(items or ()), list(pairs or ()))
        return _hash(kind, *map(self.of, parts))

    def _tensor(self, kind: str, tensor: torch.Tensor) -> bytes:
        about = (kind, str(tensor.dtype), tuple(tensor.shape), str(tensor.layout))
        if is_plain(tensor.detach()):
            return _hash(*about, _of_plain(tensor.detach(), self._seed))
        if isinstance(tensor, ShardedTensor):
            return _hash(*about, *(self.of(shard.tensor) for shard in tensor.local_shards()))
        if is_traceable_wrapper_subclass(tensor):
            names, context = tensor.__tensor_flatten__()
            return _hash(*about, self.of(context), *(self.of(getattr(tensor, name)) for name in names))
        if tensor.layout is torch.sparse_coo:
            return _hash(*about, self.of(tensor._indices()), self.of(tensor._values()))
        if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
            return _hash(*about, *map(self.of, (tensor.crow_indices(), tensor.col_indices(), tensor.values())))
        if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
            return _hash(*about, *map(self.of, (tensor.ccol_indices(), tensor.row_indices(), tensor.values())))
        if type(tensor) is torch.Tensor and tensor.is_quantized:
            return _hash(*about, str(tensor.qscheme()), self.of(tensor.int_repr()), self.of(tensor.dequantize()))
        if isinstance(tensor, torch.nn.Parameter):
            return self.of(tensor.detach())
        raise TypeError(f"the memory of a {kind} is unknown")

    def _packed(self, data: bytes) -> bytes:
        """Return the digest of a packed value regardless of the order of its dicts, or of its bytes if it is large."""
        if len(data) <= _MOST_PARTS:
            # Bytes that were not packed may begin like a packed value.
            with suppress(Exception):
                walk = _Walk(self._seed)
                return walk.of(unpack(data, lambda name, form: (name, repr(form)), subject="a value", trusted=True))
        return self._memory("packed", memoryview(data))

    def _memory(self, kind: str, memory: memoryview) -> bytes:
        return _hash(kind, len(memory), _checksum(memory, self._seed))


def _hash(*parts: Any) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass")
        made.update(len(data).to_bytes(8) + data)
    return made.digest()
