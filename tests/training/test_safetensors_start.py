"""A new run begins from safetensors that others published, and only until it has a commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from checkpoint_sidecar import (
    Checkpointer,
    ConfigurationError,
    CorruptSnapshotError,
    IncompatibleSnapshotError,
    StartFrom,
    export,
    load_safetensors,
    open_run,
)
from checkpoint_sidecar.core.log import WarmStartFinished

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def a_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8))


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def published(tmp_path: Path) -> str:
    folder = tmp_path / "published"
    folder.mkdir()
    safetensors.torch.save_file(a_model(1).state_dict(), folder / "model.safetensors")
    return f"file://{folder}/model.safetensors"


def outcome(url: str) -> WarmStartFinished:
    (found,) = (entry.body for entry in open_run(url).entries() if isinstance(entry.body, WarmStartFinished))
    return found


def test_a_run_begins_with_published_weights_at_step_0(tmp_path: Path, published: str) -> None:
    url = f"file://{tmp_path}/run"
    model = a_model(0)
    state = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}
    with Checkpointer(state, url, start_from=published) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert (restored.step, restored.url, restored.part) == (0, published, "model")
        assert restored.missing == ("optimizer",)
        assert equal(model, a_model(1))
        checkpointer.save(1)
    assert outcome(url).restored
    assert outcome(url).bytes == sum(parameter.nbytes for parameter in model.parameters())
    Path(published.removeprefix("file://")).unlink()
    again = a_model(2)
    with Checkpointer({"model": again}, url, start_from=published, strict=False) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert (restored.step, restored.url) == (1, "")
    assert equal(again, a_model(1))


def test_an_export_in_shards_is_the_beginning_of_another_run(tmp_path: Path) -> None:
    first = a_model(3)
    with Checkpointer({"net": first}, f"file://{tmp_path}/first") as checkpointer:
        checkpointer.restore()
        checkpointer.save(1)
    export(f"file://{tmp_path}/first", str(tmp_path / "out"), shard_bytes=400)
    assert len([*tmp_path.glob("out/*.safetensors")]) == 2
    start = StartFrom(f"file://{tmp_path}/out/model.safetensors.index.json", part="net")
    second = a_model(4)
    with Checkpointer({"net": second}, f"file://{tmp_path}/second", start_from=start) as checkpointer:
        checkpointer.restore()
    assert equal(first, second)
    third = a_model(5)
    assert load_safetensors(str(tmp_path / "out"), into=third).tensors == 4
    assert equal(first, third)


@pytest.mark.parametrize(
    ("model", "start", "error", "says"),
    [
        pytest.param(nn.Linear(16, 8), {}, IncompatibleSnapshotError, "it lacks bias", id="other names"),
        pytest.param(a_model(0), {"part": "ema"}, ConfigurationError, "no such object", id="other part"),
    ],
)
def test_what_does_not_fit_is_refused_and_recorded(
    tmp_path: Path, published: str, model: nn.Module, start: dict[str, Any], error: type[Exception], says: str
) -> None:
    before = [parameter.clone() for parameter in model.parameters()]
    url = f"file://{tmp_path}/run"
    with (
        pytest.raises(error, match=says),
        Checkpointer({"model": model}, url, start_from=StartFrom(published, **start)) as checkpointer,
    ):
        checkpointer.restore()
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert (outcome(url).restored, says in outcome(url).message) == (False, True)


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda data: data[:4], CorruptSnapshotError, "shorter than the length of a header"),
        (lambda data: data[:100], CorruptSnapshotError, "only part of"),
        (lambda data: data[:-1], CorruptSnapshotError, "behind the end of the file"),
        (lambda data: b"\xff" * 8 + data[8:], CorruptSnapshotError, "its header has"),
        (lambda data: data[:8] + b"[" + data[9:], CorruptSnapshotError, "not a table of tensors"),
        (None, ConfigurationError, "it does not exist"),
    ],
)
def test_a_damaged_file_is_refused(published: str, damage: Any, error: type[Exception], says: str) -> None:
    path = Path(published.removeprefix("file://"))
    model = a_model(0)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(error, match=says):
        load_safetensors(published, into=model)
    assert equal(model, a_model(0))


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"neither a file \*\.safetensors nor an index"):
        load_safetensors(str(tmp_path), into=a_model(0))
