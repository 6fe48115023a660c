"""Every kind of tensor through the drop-in: it comes back as it was, or the save is refused by name."""

from __future__ import annotations

import argparse
import copy
import logging
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from checkpoint_sidecar import BalancedSavePlanner
from checkpoint_sidecar.core.errors import ConfigurationError, UntrustedSnapshotError
from checkpoint_sidecar.training.dcp import archives
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter
from checkpoint_sidecar.training.dcp.errors import raising_ours

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Named(torch.Tensor):
    """A subclass that adds nothing."""


class Rooted(torch.Tensor):
    """A subclass that holds what no loader allows."""

    root: pathlib.Path

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> Rooted:
        made = torch.Tensor._make_subclass(cls, data)
        made.root = pathlib.PosixPath("/")
        return made


DTYPES = [
    value for value in vars(torch).values() if isinstance(value, torch.dtype) and not str(value).startswith("torch.q")
]
QUANTIZED = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 0, torch.qint8)
COMPLEX = torch.tensor([1 + 2j, 3 - 4j])
TENSORS = {
    "without dimensions": torch.tensor(3.0),
    "without elements": torch.empty(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "a slice": torch.arange(100.0)[10:20:2],
    "expanded": torch.ones(1).expand(4, 5),
    "overlapping itself": torch.arange(6.0).as_strided((3, 3), (1, 1)),
    "channels last": torch.arange(96.0).reshape(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "conjugated": COMPLEX.conj(),
    "negated": COMPLEX.conj().imag,
    "requiring a gradient": torch.ones(3, requires_grad=True),
    "a buffer": torch.nn.Buffer(torch.ones(3)),
    "quantized": QUANTIZED,
    "quantized by channel": torch.quantize_per_channel(
        torch.ones(2, 2), torch.tensor([0.1, 0.2]), torch.tensor([0, 0]), 0, torch.qint8
    ),
}


def save(folder: Path, value: torch.Tensor, **options: Any) -> None:
    with raising_ours("save"):
        dcp.save({"a.name": value}, storage_writer=CheckpointWriter(folder, **options))


def loaded(folder: Path, into: torch.Tensor, reader: Callable[..., Any] = CheckpointReader) -> torch.Tensor:
    state = {"a.name": into}
    with raising_ours("load"):
        dcp.load(state, storage_reader=reader(folder))
    return state["a.name"]


def empty_like(value: torch.Tensor) -> torch.Tensor:
    if value.is_quantized:
        return copy.deepcopy(value).copy_(torch.zeros(value.shape))
    return torch.zeros(value.shape, dtype=torch.uint8).to(value.dtype) if value.dtype.itemsize else value


def bits(value: torch.Tensor) -> bytes:
    if value.is_quantized:
        return bits(value.int_repr())
    plain = value.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("value", TENSORS.values(), ids=TENSORS)
def test_a_tensor_comes_back_as_it_was(tmp_path: Path, value: torch.Tensor) -> None:
    save(tmp_path, value)
    for reader in (CheckpointReader, FileSystemReader):
        found = loaded(tmp_path, empty_like(value), reader)
        assert (found.dtype, found.shape, bits(found)) == (value.dtype, value.shape, bits(value))


def test_every_dtype_that_torch_brings_back_we_do_too(tmp_path: Path) -> None:
    """What torch cannot save, it refuses before we are asked."""
    tried = 0
    for number, dtype in enumerate(DTYPES):
        memory = torch.arange(64, dtype=torch.uint8) % 2
        state = {"x": memory.view(dtype) if dtype.itemsize else memory}
        stock, ours = tmp_path / f"stock-{number}", tmp_path / f"ours-{number}"
        try:
            dcp.save(state, storage_writer=FileSystemWriter(stock))
        except BaseException:  # noqa: BLE001 - torch's CheckpointException is none
            continue
        tried += 1
        dcp.save(state, storage_writer=CheckpointWriter(ours))
        for folder, reader in ((stock, CheckpointReader), (ours, CheckpointReader), (ours, FileSystemReader)):
            found = {"x": torch.zeros(64, dtype=torch.uint8).view(dtype)}
            dcp.load(found, storage_reader=reader(folder))
            assert bits(found["x"]) == bits(state["x"]), (dtype, folder, reader)
    assert tried > 15


@pytest.mark.parametrize("stored", [torch.eye(300), torch.zeros(3, 3), torch.eye(3)], ids=["many", "none", "few"])
def test_a_sparse_tensor_comes_back(tmp_path: Path, stored: torch.Tensor) -> None:
    value = stored.to_sparse()
    save(tmp_path, value)
    other = torch.zeros(stored.shape, dtype=stored.dtype, layout=torch.sparse_coo)
    for into in (other, other.clone().requires_grad_()):
        found = loaded(tmp_path, into)
        assert found is into
        assert found.layout is torch.sparse_coo
        assert torch.equal(found.detach().to_dense(), stored)


@pytest.mark.parametrize("value", [torch.ones(3).as_subclass(Named), Rooted(torch.ones(3))], ids=["named", "rooted"])
def test_a_tensor_of_an_unknown_class_is_refused_when_it_is_saved(tmp_path: Path, value: torch.Tensor) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.name.*add_safe_globals.*trust=\"full\""):
        save(tmp_path, value)
    assert not list(tmp_path.rglob("*.distcp"))
    assert not (tmp_path / ".metadata").exists()


def test_a_tensor_of_an_allowed_class_comes_back(tmp_path: Path) -> None:
    value = torch.arange(3.0).as_subclass(Named)
    with torch.serialization.safe_globals([Named]):
        save(tmp_path / "safe", value)
        found = loaded(tmp_path / "safe", torch.zeros(3).as_subclass(Named))
    assert type(found) is Named
    assert torch.equal(found, value)
    save(tmp_path / "full", value, trust="full")
    archives._LOADABLE.clear()
    with pytest.raises(UntrustedSnapshotError, match=r"a\.name"):
        loaded(tmp_path / "full", torch.zeros(3).as_subclass(Named))


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(3, device="meta"),
        torch.eye(3).to_sparse_csr(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]),
        torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged),
    ],
    ids=["meta", "csr", "nested", "jagged"],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, value: torch.Tensor) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.name"), raising_ours("save"):
        dcp.save({"a.name": value}, storage_writer=CheckpointWriter(tmp_path), planner=BalancedSavePlanner())
    assert not list(tmp_path.rglob("*.distcp"))


def test_an_object_that_only_a_trusting_load_takes_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archives._REPORTED.clear()
    state = {"options": argparse.Namespace(depth=2), "plain": [1, "a"]}
    with caplog.at_level(logging.WARNING, "checkpoint_sidecar"):
        for _ in range(2):
            dcp.save(state, storage_writer=CheckpointWriter(tmp_path))
    messages = [record.getMessage() for record in caplog.records if 'trust="full"' in record.getMessage()]
    assert len(messages) == 1
    assert messages[0].startswith("options is saved")
