"""``checkpoint export``: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from checkpoint_cli.verbs import Door
from checkpoint_cli.words import parse_size
from checkpoint_sidecar import Checkpointer
from support.commands import Program

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "cli-schema.json").read_text())


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        del state


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    address = (tmp_path_factory.mktemp("runs") / "llama").as_uri()
    with Checkpointer({"model": Trained()}, url=address) as checkpointer:
        checkpointer.restore()
        checkpointer.save(10)
    return address


@pytest.fixture
def checkpoint(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(Door.BUCKET, capsys)


def test_an_export_is_described_and_what_is_left_out_is_named(checkpoint: Program, url: str, tmp_path: Path) -> None:
    ran = checkpoint("export", f"{url}@10", str(tmp_path), "--strip", "model.", "--rename", r"(\d)\.=layer\1_")
    assert ran.status == 0, ran.errors
    assert set(load_file(tmp_path / "model.safetensors")) == {
        f"layer{number}_{name}" for number in (0, 1) for name in ("weight", "bias")
    }
    assert ran.output.split()[:4] == ["FILE", "SIZE", "STATE", "CRC32C"]
    assert "model.safetensors" in ran.output
    assert "Not exported, because they are no tensors: model._extra_state." in ran.errors
    assert "Exported 4 tensors of step 10" in ran.errors
    again = checkpoint("export", f"{url}@10", str(tmp_path), "--strip", "model.", "--rename", r"(\d)\.=layer\1_")
    assert (again.status, "has this export already" in again.errors) == (0, True)


def test_a_dry_run_writes_nothing(checkpoint: Program, url: str, tmp_path: Path) -> None:
    arguments = ("export", url, str(tmp_path / "out"), "--to", "hf", "--max-shard-size", "300", "-o", "json")
    record = checkpoint(*arguments, "--dry-run").json
    jsonschema.validate(record, SCHEMA)
    assert (record["done"], [each["state"] for each in record["items"]]) == (False, ["planned", "planned"])
    assert not (tmp_path / "out").exists()
    record = checkpoint(*arguments).json
    jsonschema.validate(record, SCHEMA)
    assert (record["done"], record["tensors"], record["skipped"]) == (True, 4, ["model._extra_state"])
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_a_config_is_copied_beside_and_values_are_cast(checkpoint: Program, url: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    ran = checkpoint("export", url, str(tmp_path / "out"), "--config", str(config), "--dtype", "bfloat16", "-o", "name")
    assert ran.output.split() == ["model.safetensors"]
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--part", "ema"], 2, "it has no tensor below ema"),
        (["--rename", "weight"], 2, "'weight' is not <regex>=<replacement>"),
        (["--rename", "(=x"], 2, "no regular expression"),
        (["--dtype", "int3"], 2, "not a dtype to cast to"),
        (["--max-shard-size", "5 apples"], 2, "not a size"),
        (["--to", "pt", "--max-shard-size", "5GB"], 2, "has no shards"),
        (["--to", "onnx"], 2, "onnx"),
        (["--config", "no/such/config.json"], 2, "No such file"),
    ],
)
def test_a_wrong_option_is_one_line(
    checkpoint: Program, url: str, tmp_path: Path, arguments: list[str], status: int, says: str
) -> None:
    ran = checkpoint("export", url, str(tmp_path / "out"), *arguments)
    assert ran.status == status
    assert says in ran.problem
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_is_replaced_only_on_request(checkpoint: Program, url: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    ran = checkpoint("export", url, str(tmp_path))
    assert ran.status == 4
    assert "it exists already, and is not of this export" in ran.problem
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
    assert checkpoint("export", url, str(tmp_path), "--yes").status == 0


def test_a_snapshot_that_does_not_exist_is_status_3(checkpoint: Program, url: str, tmp_path: Path) -> None:
    ran = checkpoint("export", f"{url}@11", str(tmp_path / "out"))
    assert ran.status == 3
    assert "no snapshot has this step" in ran.problem


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("0", 0), ("300", 300), ("5GB", 5 * 10**9), ("2 GiB", 2 * 1024**3), ("1.5MB", 1_500_000), ("7B", 7)],
)
def test_sizes_are_written_as_people_do(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["five", "5 apples", "-1", "1iB", "5gb"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)
