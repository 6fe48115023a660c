"""Checkpoints that torch's writer compressed with zstandard are read like any other."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import zstandard
from torch.distributed.checkpoint._extension import StreamTransformExtension, ZStandard
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError, CorruptSnapshotError
from checkpoint_sidecar.training.dcp import transforms
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader
from checkpoint_sidecar.training.dcp.errors import raising_ours

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def state(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(64, 32, generator=generator)
    return {"zeros": torch.zeros(1000) + seed, "random": random, "position": {"step": seed}}


def save(folder: Path, extension: StreamTransformExtension) -> None:
    dcp.save(state(3), storage_writer=FileSystemWriter(folder, _extensions=[extension]))


def load(folder: Path) -> dict[str, Any]:
    found = state(0)
    with raising_ours("load"):
        dcp.load(found, storage_reader=CheckpointReader(folder))
    return found


def rename_extension(folder: Path, descriptor: str) -> None:
    """Change which extension the metadata names."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.transform_descriptors = [descriptor]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_tensors_and_objects_come_back(tmp_path: Path) -> None:
    save(tmp_path, ZStandard())
    found = load(tmp_path)
    assert torch.equal(found["zeros"], state(3)["zeros"])
    assert torch.equal(found["random"], state(3)["random"])
    assert found["position"] == {"step": 3}


def test_an_extension_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, ZStandard())
    rename_extension(tmp_path, "stream.zstd/2")
    with pytest.raises(ConfigurationError, match=r"stream extensions \['stream.zstd/2'\]"):
        load(tmp_path)


def test_bytes_that_zstandard_did_not_write_are_refused(tmp_path: Path) -> None:
    save(tmp_path, ZStandard())
    (data,) = tmp_path.glob("*.distcp")
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(CheckpointError, match=r"it is not what stream\.zstd/1 writes"):
        load(tmp_path)


def test_an_item_that_inflates_beyond_its_tensor_is_refused() -> None:
    inflated = zstandard.ZstdCompressor().compress(bytes(10_000_000))
    assert len(inflated) < 2000
    with pytest.raises(CorruptSnapshotError, match="more than 100000 bytes"):
        transforms.expanded(memoryview(inflated), ["stream.zstd/1"], most=100_000, subject="weights")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, ZStandard())
    monkeypatch.setattr("torch.distributed.checkpoint._extension.zstandard", None)
    with pytest.raises(ConfigurationError, match="Install zstandard"):
        load(tmp_path)
