"""What is saved and loaded: a model's weights as FSDP2 shards them, and thousands of small tensors.

Every element of a tensor follows from the tensor's name and the element's place in the whole tensor, so that what was
loaded can be checked on any rank of any number of ranks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed.tensor as dtensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement

# Llama 3.2 1B. All 16 layers and the embedding, which is the output layer too, are 2.47 GB.
_HIDDEN, _FEED_FORWARD, _KEY_VALUE, _VOCABULARY = 2048, 8192, 512, 128256
_LAYER = {
    "attention.wq.weight": (_HIDDEN, _HIDDEN),
    "attention.wk.weight": (_KEY_VALUE, _HIDDEN),
    "attention.wv.weight": (_KEY_VALUE, _HIDDEN),
    "attention.wo.weight": (_HIDDEN, _HIDDEN),
    "feed_forward.w1.weight": (_FEED_FORWARD, _HIDDEN),
    "feed_forward.w2.weight": (_HIDDEN, _FEED_FORWARD),
    "feed_forward.w3.weight": (_FEED_FORWARD, _HIDDEN),
    "attention_norm.weight": (_HIDDEN,),
    "ffn_norm.weight": (_HIDDEN,),
}
_MAX_LAYERS = 16
_BF16_BYTES = 2

Shapes = Mapping[str, tuple[int, ...]]
State = dict[str, torch.Tensor]


def shapes(total_bytes: int) -> dict[str, tuple[int, ...]]:
    """As many layers of the model as fit, at least one; with the embedding if that leaves room for most of them."""
    found: dict[str, tuple[int, ...]] = {"norm.weight": (_HIDDEN,)}
    if total_bytes > 4 * _VOCABULARY * _HIDDEN * _BF16_BYTES:
        found["tok_embeddings.weight"] = (_VOCABULARY, _HIDDEN)
    layer_bytes = bytes_of(_LAYER)
    layers = (total_bytes - bytes_of(found)) // layer_bytes
    for layer in range(min(max(layers, 1), _MAX_LAYERS)):
        found |= {f"layers.{layer}.{name}": shape for name, shape in _LAYER.items()}
    return found


def small_shapes(count: int) -> dict[str, tuple[int, ...]]:
    """Tensors of 4 KiB."""
    return {f"small.{number}": (_HIDDEN,) for number in range(count)}


def bytes_of(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() * _BF16_BYTES for shape in shapes.values())


def sharded(shapes: Shapes, mesh: DeviceMesh, placements: list[Placement]) -> State:
    """This rank's shards, not yet filled."""
    return {
        name: dtensor.empty(*shape, dtype=torch.bfloat16, device_mesh=mesh, placements=placements)
        for name, shape in shapes.items()
    }


def whole(shapes: Shapes) -> State:
    """Plain tensors, not yet filled."""
    return {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fill(state: State) -> None:
    for name, tensor in state.items():
        numbers = local(tensor).view(torch.int32)
        torch.arange(
            _first(name, tensor), _first(name, tensor) + numbers.numel(), dtype=torch.int32, out=numbers.view(-1)
        )


def clear(state: State) -> None:
    for tensor in state.values():
        local(tensor).zero_()


def check(state: State) -> None:
    """Raises:
    AssertionError: A tensor is not what ``fill`` makes it.
    """
    for name, tensor in state.items():
        numbers = local(tensor).view(torch.int32).view(-1)
        first = _first(name, tensor)
        expected = torch.arange(first, first + numbers.numel(), dtype=torch.int32)
        assert torch.equal(numbers, expected), f"{name} was not loaded as it was saved"


def buffers(state: State) -> Iterator[memoryview]:
    """The memory of this rank's shards."""
    for tensor in state.values():
        yield memoryview(local(tensor).view(torch.uint8).view(-1).numpy())


def _first(name: str, tensor: torch.Tensor) -> int:
    """The first pair of elements of this shard, as a number."""
    start = zlib.crc32(name.encode()) // 4
    if isinstance(tensor, DTensor):
        start += tensor.__create_chunk_list__()[0].offsets[0] * tensor.stride()[0] * _BF16_BYTES // 4
    return start
