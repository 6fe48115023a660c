"""The copy that a background save uploads is the state as it was, in memory that is kept for the next."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, init_from_local_shards
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor import Shard as ShardedBy

from checkpoint_sidecar.training.staging import HostCopy, SideStream


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def places(copied: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in copied.items()}


def test_each_copy_is_the_state_as_it_was() -> None:
    copy = HostCopy()
    state: dict[str, Any] = {
        "x": torch.zeros(4),
        "nested": [{"y": torch.zeros(2).t()}],
        "step": 0,
        "betas": (0.9, torch.zeros(1)),
    }
    for step in (1, 2, 3):
        state["x"].fill_(step)
        state["nested"][0]["y"].fill_(-step)
        state["betas"][1].fill_(step + 0.5)
        state["step"] = step
        copied = copy(state)
        for tensor in (state["x"], state["nested"][0]["y"], state["betas"][1]):
            tensor.zero_()
        assert torch.equal(copied["x"], torch.full((4,), float(step)))
        assert torch.equal(copied["nested"][0]["y"], torch.full((2,), float(-step)))
        assert copied["step"] == step
        assert copied["betas"] == (0.9, torch.tensor([step + 0.5]))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5),
        torch.empty(0, 3),
        torch.arange(6).reshape(2, 3).t(),
        torch.arange(10)[::3],
        torch.ones(1).expand(4),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,
        torch.tensor([1.0, float("nan"), -0.0], dtype=torch.bfloat16),
        torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        torch.tensor([True, False]),
        torch.nn.Parameter(torch.ones(2)),
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ],
    ids=[
        "of no dimension",
        "of no elements",
        "transposed",
        "with a step",
        "expanded",
        "conjugated",
        "negated",
        "bfloat16",
        "float8",
        "bool",
        "parameter",
        "sparse",
        "quantized",
    ],
)
def test_every_kind_of_tensor_keeps_its_values(tensor: torch.Tensor) -> None:
    copied = HostCopy()({"x": tensor})["x"]
    assert copied.dtype == tensor.dtype
    assert not copied.requires_grad
    assert repr(copied) == repr(tensor.detach().clone())


def test_the_next_copy_takes_no_new_memory() -> None:
    copy = HostCopy()
    state = {"a": torch.zeros(1000), "b": torch.zeros(1000), "c": torch.zeros(10, 100)}
    first = places(copy(state))
    assert set(places(copy(state)).values()) == set(first.values())


def test_a_tensor_of_another_shape_or_type_gets_memory_of_its_own() -> None:
    copy = HostCopy()
    for tensor in (torch.ones(4), torch.ones(2, 2), torch.ones(4, dtype=torch.int32)):
        assert torch.equal(copy({"x": tensor})["x"], tensor)


def test_memory_of_a_tensor_that_is_gone_is_freed() -> None:
    copy = HostCopy()
    copy({"a": torch.zeros(4), "b": torch.zeros(4)})
    before = places(copy({"a": torch.zeros(4)}))["a"]
    assert len(set(places(copy({"a": torch.zeros(4), "b": torch.zeros(4)})).values()) - {before}) == 1
    assert [len(buffers) for buffers in copy._buffers.values()] == [2]


def test_a_copy_that_failed_does_not_spoil_the_next() -> None:
    copy = HostCopy()
    tensor = torch.ones(4)
    copy({"x": tensor, "y": tensor + 1})
    with pytest.raises(TypeError, match="pickle"):
        copy({"x": tensor, "lock": threading.Lock()})
    copied = copy({"x": tensor, "y": tensor + 1})
    assert torch.equal(copied["x"], tensor)
    assert torch.equal(copied["y"], tensor + 1)


def test_a_square_matrix_and_its_transpose_are_two_though_they_begin_in_one_place() -> None:
    weights = torch.arange(9.0).reshape(3, 3)
    copied = HostCopy()({"weights": weights, "transposed": weights.t()})
    assert torch.equal(copied["transposed"], weights.t())
    assert torch.equal(copied["weights"], weights)


def test_tied_weights_are_copied_once() -> None:
    weights = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    copied = HostCopy()({"embedding": weights, "head": weights.detach(), "other": weights.t(), "row": weights[0]})
    assert copied["embedding"] is copied["head"]
    assert torch.equal(copied["other"], weights.t())
    assert torch.equal(copied["row"], weights[0])


def test_one_place_in_memory_may_mean_several_things() -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    state = {"numbers": numbers, "conjugated": numbers.conj(), "bits": numbers.view(torch.int64)}
    copied = HostCopy()(state)
    assert all(torch.equal(copied[name], tensor) for name, tensor in state.items())


def test_what_is_no_tensor_is_copied_too() -> None:
    settings = OrderedDict(lr=[0.1, 0.2])
    members = {1}
    state = {"settings": settings, "bytes": b"x", "set": members}
    copied = HostCopy()(state)
    settings["lr"].append(0.3)
    members.add(2)
    assert copied == {"settings": {"lr": [0.1, 0.2]}, "bytes": b"x", "set": {1}}


@pytest.mark.usefixtures("group")
def test_a_dtensor_stays_one_and_keeps_its_memory() -> None:
    mesh = dist.init_device_mesh("cpu", (1,))
    copy = HostCopy()
    original = distribute_tensor(torch.arange(6.0), mesh, [ShardedBy(0)])
    first, second = copy({"x": original})["x"], copy({"x": original})["x"]
    for copied in (first, second):
        assert type(copied) is DTensor
        assert (copied.device_mesh, copied.placements, copied.shape) == (mesh, original.placements, original.shape)
    assert second.to_local().data_ptr() == first.to_local().data_ptr() != original.to_local().data_ptr()
    assert torch.equal(second.to_local(), torch.arange(6.0))
    original.to_local().zero_()
    assert torch.equal(second.to_local(), torch.arange(6.0)), "the copy shares memory with the original"
    assert original.to_local().data_ptr() != second.to_local().data_ptr(), "the original was moved"


@pytest.mark.usefixtures("group")
def test_a_sharded_tensor_stays_one_and_keeps_its_memory() -> None:
    copy = HostCopy()
    shard = Shard.from_tensor_and_offsets(torch.arange(6.0).reshape(2, 3), [0, 0], 0)
    original = init_from_local_shards([shard], 2, 3)
    first, second = copy({"x": original})["x"], copy({"x": original})["x"]
    assert type(second) is ShardedTensor
    assert second.metadata() == original.metadata()
    assert second.local_shards()[0].metadata == shard.metadata
    (kept,) = {copied.local_shards()[0].tensor.data_ptr() for copied in (first, second)}
    assert kept != shard.tensor.data_ptr()
    assert torch.equal(second.local_shards()[0].tensor, shard.tensor)


def test_a_side_stream_copies_all_it_was_given() -> None:
    """With the CPU's streams, which do nothing: what a GPU's would overlap is not tested here."""
    stream = SideStream(torch.cpu, torch.device("cpu"))
    sources = [torch.full((4,), float(number)) for number in range(3)]
    buffers = [torch.empty(4) for _ in sources]
    for source, buffer in zip(sources, buffers, strict=True):
        stream.copy(source, buffer)
    stream.wait()
    assert all(map(torch.equal, sources, buffers))
