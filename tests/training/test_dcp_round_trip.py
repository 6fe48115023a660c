"""What is saved comes back bit for bit, in our reader and in torch's, whatever it is."""

from __future__ import annotations

import copy
import pickle
import pickletools
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.serialization import get_crc32_options, set_crc32_options

from checkpoint_sidecar.core.layout import pointer_key
from checkpoint_sidecar.engine.verify import check_sizes
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.frames import frame
from checkpoint_sidecar.training.dcp.reader import SnapshotReader
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter
from doubles.memory import MemoryStore
from doubles.targets import RecordingTarget, load, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

TENSORS: dict[str, torch.Tensor] = {
    "float32": torch.randn(33, 7),
    "float64": torch.randn(3, dtype=torch.float64),
    "bfloat16": torch.randn(5, 5).bfloat16(),
    "float16": torch.randn(5).half(),
    "float8 with more fraction": torch.randn(16).to(torch.float8_e4m3fn),
    "float8 with more exponent": torch.randn(16).to(torch.float8_e5m2),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "int64": torch.tensor([2**62, -1]),
    "complex128": torch.randn(4, dtype=torch.complex128),
    "int8": torch.arange(-4, 4, dtype=torch.int8),
    "complex64": torch.randn(4, dtype=torch.complex64),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "not a number": torch.tensor([float("nan"), float("-inf"), -0.0]),
    "transposed": torch.randn(4, 6).t(),
    "a view of a larger tensor": torch.randn(1000)[10:20],
    "strided": torch.randn(10)[::2],
    "channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(torch.randn(3)),
    "larger than a block": torch.randn(3 * 1024 * 1024),
}


def bits(tensor: torch.Tensor) -> bytes:
    """The values as bytes, in logical order: equality that tells -0.0 from 0.0 and NaNs apart."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


BITS = {name: bits(tensor) for name, tensor in TENSORS.items()}


def blank(state: Any) -> Any:
    """The same structure with other values."""
    if isinstance(state, torch.Tensor):
        return torch.zeros_like(state.detach())
    if isinstance(state, dict):
        return {key: blank(value) for key, value in state.items()}
    if isinstance(state, list):
        return [blank(value) for value in state]
    return None


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_bit_for_bit(name: str) -> None:
    saved = save(MemoryStore(), {"x": TENSORS[name]})
    state = {"x": blank(TENSORS[name])}
    load(state, saved.reader())
    assert state["x"].dtype == TENSORS[name].dtype
    assert bits(state["x"]) == bits(TENSORS[name])


def test_a_view_is_saved_without_the_tensor_it_is_a_view_of() -> None:
    saved = save(MemoryStore(), {"x": torch.randn(1_000_000)[:10]})
    assert saved.manifest.size < 20_000


def test_nested_state_and_objects_come_back() -> None:
    state: dict[str, Any] = {
        "optim": {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.randn(3)}}, "param_groups": [{"lr": 0.1}]},
        "step": 12,
        "name": "run",
        "betas": (0.9, 0.95),
        "nothing": None,
        "list": [1, [2, torch.arange(3)]],
    }
    saved = save(MemoryStore(), state)
    loaded = blank(state)
    load(loaded, saved.reader())
    for key in ("step", "name", "betas", "nothing"):
        assert loaded[key] == state[key]
    assert loaded["optim"]["param_groups"] == state["optim"]["param_groups"]
    assert bits(loaded["optim"]["state"][0]["exp_avg"]) == bits(state["optim"]["state"][0]["exp_avg"])
    assert bits(loaded["list"][1][1]) == bits(state["list"][1][1])


def test_many_small_tensors_are_read_in_few_requests() -> None:
    class Counting(MemoryStore):
        requests = 0

        def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
            self.requests += 1
            super().read_into(key, start, buffers)

    store = Counting()
    state = {f"t{i}": torch.full((4,), float(i)) for i in range(500)}
    saved = save(store, state)
    loaded = blank(state)
    load(loaded, saved.reader())
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert store.requests <= 3


def test_a_planner_that_caches_its_plans_does_not_write_into_the_earlier_save() -> None:
    store = MemoryStore()
    first = save(store, {"x": torch.ones(3)}, planner=dcp.DefaultSavePlanner(enable_plan_caching=True))
    before = {info.key: info.modified for info in store.list(first.save.folder.path)}
    second = save(store, {"x": torch.zeros(3)}, planner=dcp.DefaultSavePlanner(enable_plan_caching=True))
    assert {info.key: info.modified for info in store.list(first.save.folder.path)} == before
    loaded = {"x": torch.full((3,), 9.0)}
    load(loaded, second.reader())
    assert torch.equal(loaded["x"], torch.zeros(3))


def test_a_planner_without_flattening_works_too() -> None:
    saved = save(MemoryStore(), {"x": torch.ones(3)}, planner=dcp.DefaultSavePlanner(flatten_state_dict=False))
    loaded = {"x": torch.zeros(3)}
    load(loaded, saved.reader(), planner=dcp.DefaultLoadPlanner(flatten_state_dict=False))
    assert torch.equal(loaded["x"], torch.ones(3))


def test_the_manifest_lists_every_object_of_the_save_with_its_size() -> None:
    saved = save(MemoryStore(), {"x": torch.ones(3), "y": "text"})
    listed = {f"{saved.save.folder.path}/{file.name}": file.size for file in saved.manifest.files}
    stored = {info.key: info.size for info in saved.store.list()}
    assert stored.pop(saved.save.folder.manifest) > 0
    assert stored == listed
    check_sizes(saved.store, saved.save.folder.path, saved.manifest.files)
    assert saved.manifest.world_size == 1


def test_the_metadata_is_made_of_torchs_own_classes_only() -> None:
    saved = save(MemoryStore(), {"x": torch.ones(3), "y": "text"})
    for key in (saved.save.folder.metadata, saved.save.folder.stock_metadata):
        data = saved.store.get(key, max_bytes=10**6).data
        modules = {
            str(argument).split()[0]
            for opcode, argument, _ in pickletools.genops(pickle.dumps(pickle.loads(data), protocol=2))
            if opcode.name == "GLOBAL"
        }
        assert modules
        assert all(module.split(".")[0] in ("torch", "copyreg", "collections", "builtins") for module in modules)


def test_torchs_own_reader_loads_the_save_and_its_pointer(tmp_path: Path) -> None:
    store = open_store(StoreSettings(f"file://{tmp_path}"))
    state = {"x": TENSORS, "y": {"z": [1, torch.arange(4)]}}
    saved = save(store, state)
    store.put(pointer_key(7), store.get(saved.save.folder.stock_metadata, max_bytes=10**6).data)
    for path in (tmp_path / saved.save.folder.path, tmp_path / "step-7"):
        loaded = blank(state)
        dcp.load(loaded, storage_reader=FileSystemReader(path))
        assert {name: bits(tensor) for name, tensor in loaded["x"].items()} == BITS
        assert loaded["y"]["z"][0] == 1


def test_our_reader_loads_what_torch_saved(tmp_path: Path) -> None:
    state = {"x": TENSORS, "y": {"z": [1, torch.arange(4)]}, "lr": 0.1}
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path, thread_count=2))
    loaded = blank(state)
    load(loaded, SnapshotReader(open_store(StoreSettings(f"file://{tmp_path}")), "", None))
    assert {name: bits(tensor) for name, tensor in loaded["x"].items()} == BITS
    assert loaded["lr"] == 0.1


def test_torchs_files_and_ours_have_the_same_bytes_but_for_checksums_that_torch_never_reads(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(set_crc32_options, get_crc32_options()))
    set_crc32_options(False)
    request.addfinalizer(frame.cache_clear)
    frame.cache_clear()
    state = {"x": torch.arange(50.0), "y": torch.arange(4).reshape(2, 2), "lr": 0.1}
    dcp.save(copy.deepcopy(state), storage_writer=FileSystemWriter(tmp_path))
    saved = save(MemoryStore(), state)
    assert saved.store.get(saved.data_key, max_bytes=10**6).data == (tmp_path / "__0_0.distcp").read_bytes()


@pytest.mark.parametrize("verify", ["None", "Sizes", "Checksums"])
def test_every_level_of_verification_loads_a_good_snapshot(verify: Any) -> None:
    saved = save(MemoryStore(), {"x": torch.ones(3)})
    loaded = {"x": torch.zeros(3)}
    load(loaded, saved.reader(verify=verify))
    assert torch.equal(loaded["x"], torch.ones(3))


def test_a_save_in_a_background_thread_holds_the_state_as_it_was_when_it_began() -> None:
    store, target = MemoryStore(), RecordingTarget()
    state = {"x": torch.ones(1000)}
    future = dcp.async_save(state, storage_writer=SnapshotWriter(store, target), no_dist=True)
    assert isinstance(future, Future)
    state["x"].zero_()
    future.result()
    ((new, manifest, _),) = target.committed
    loaded = {"x": torch.full((1000,), 5.0)}
    load(loaded, SnapshotReader(store, new.folder.path, manifest))
    assert torch.equal(loaded["x"], torch.ones(1000))
