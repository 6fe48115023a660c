"""Copies a state dict to host memory, so that training continues while the copy is uploaded.

torch has stagers too, but those before 2.9 do not keep their buffers, that of 2.12 breaks after its first copy, and
none accepts FSDP1's tensors. New memory costs several times as much as the copy, because every page of it is faulted
in.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, TypeAlias, cast

import torch
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.tensor import DTensor

from checkpoint_sidecar.engine.limits import cores_of_rank
from checkpoint_sidecar.training.dcp.memory import is_plain

_MOST_THREADS = 4
"""Maximum of threads that copy in host memory; more of them would wait for memory."""

_Kind: TypeAlias = tuple[torch.Size, torch.dtype, bool]
_Buffers: TypeAlias = defaultdict[_Kind, list[torch.Tensor]]


class HostCopy:
    """Copies state dicts of nested dicts, lists and tuples.

    Tensors, also the shards of a ``DTensor`` or ``ShardedTensor``, are copied concurrently into buffers that are reused
    for the next copy; the buffers of GPU tensors are page-locked. Tensors that share memory, such as tied weights, are
    copied once. Everything else is deep-copied.
    """

    def __init__(self) -> None:
        self._buffers: _Buffers = defaultdict(list)

    def __call__(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a complete copy. It uses the buffers of the previous copy, which must no longer be in use."""
        free, self._buffers = self._buffers, defaultdict(list)
        copying = _Copying(free, self._buffers)
        try:
            with torch.no_grad():
                return cast("dict[str, Any]", copying.of(state))
        finally:
            copying.wait()

    def close(self) -> None:
        """Free the buffers."""
        self._buffers.clear()


class _Copying:
    """A copy in progress.

    Args:
        free: Buffers to use.
        used: Receives the buffers that were used, old and new.
    """

    def __init__(self, free: _Buffers, used: _Buffers) -> None:
        self._free = free
        self._used = used
        self._copied: dict[tuple[Any, ...], torch.Tensor] = {}
        self._streams: dict[torch.device, SideStream] = {}
        self._on_host: list[tuple[torch.Tensor, torch.Tensor]] = []

    def of(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self.of(each) for key, each in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self.of, value))
        if isinstance(value, DTensor):
            return self._dtensor(value)
        if isinstance(value, ShardedTensor):
            return self._sharded_tensor(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        return copy.deepcopy(value)

    def wait(self) -> None:
        """Wait until the last byte is on the host."""
        with ThreadPoolExecutor(min(cores_of_rank(), _MOST_THREADS), thread_name_prefix="stage") as threads:
            # The largest first, or one thread would still copy it when the others have finished.
            largest_first = sorted(self._on_host, key=lambda pair: pair[0].nbytes, reverse=True)
            list(threads.map(_copy, largest_first))
        for stream in self._streams.values():
            stream.wait()

    def _dtensor(self, value: DTensor) -> DTensor:
        # ``from_local`` would send the copy back to the mesh's device.
        staged = cast("DTensor", value.detach())
        staged._local_tensor = self._tensor(value.to_local())
        return staged

    def _sharded_tensor(self, value: ShardedTensor) -> ShardedTensor:
        metadata = copy.deepcopy(value.metadata())
        metadata.shards_metadata = [_on_host(each) for each in metadata.shards_metadata]
        shards = [Shard(self._tensor(shard.tensor), _on_host(shard.metadata)) for shard in value.local_shards()]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, sharded_tensor_metadata=metadata, process_group=value._process_group, init_rrefs=False
        )

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        plain = value.detach()
        if not is_plain(plain):
            return plain.to("cpu", copy=True)
        # Equal for tensors that have the same elements in the same memory.
        identity = (
            plain.device,
            plain.data_ptr(),
            plain.shape,
            plain.stride(),
            plain.dtype,
            plain.is_conj(),
            plain.is_neg(),
        )
        if identity not in self._copied:
            self._copied[identity] = self._to_host(plain)
        return self._copied[identity]

    def _to_host(self, source: torch.Tensor) -> torch.Tensor:
        on_gpu = source.device.type == "cuda"
        buffer = self._buffer((source.shape, source.dtype, on_gpu))
        if not on_gpu:
            self._on_host.append((source, buffer))
            return buffer
        if source.device not in self._streams:
            self._streams[source.device] = SideStream(torch.cuda, source.device)
        self._streams[source.device].copy(source, buffer)
        return buffer

    def _buffer(self, kind: _Kind) -> torch.Tensor:
        shape, dtype, pinned = kind
        buffers = self._free[kind]
        buffer = buffers.pop() if buffers else torch.empty(shape, dtype=dtype, device="cpu", pin_memory=pinned)
        self._used[kind].append(buffer)
        return buffer


def _copy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    source, target = pair
    target.copy_(source)


def _on_host(shard: ShardMetadata) -> ShardMetadata:
    moved = copy.deepcopy(shard)
    if moved.placement is not None:
        moved.placement._device = torch.device("cpu")
    return moved


class SideStream:
    """Copies from a device after the work that is queued on it now, without a wait between one copy and the next.

    Args:
        backend: The device's module, ``torch.cuda``.
    """

    def __init__(self, backend: ModuleType, device: torch.device) -> None:
        self._backend = backend
        self._stream = backend.Stream(device)
        self._stream.wait_stream(backend.current_stream(device))

    def copy(self, source: torch.Tensor, buffer: torch.Tensor) -> None:
        """Start a copy; keep both tensors alive until ``wait`` returns."""
        with self._backend.stream(self._stream):
            buffer.copy_(source, non_blocking=True)

    def wait(self) -> None:
        """Wait until everything is copied."""
        end = self._backend.Event()
        end.record(self._stream)
        end.synchronize()
