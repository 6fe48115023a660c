"""``tree``, ``diff`` and ``verify`` on snapshots that training has saved."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from checkpoint_cli.records import ItemRecord
from checkpoint_cli.tree import as_modules, differing_items
from checkpoint_cli.verbs import Door
from checkpoint_sidecar import Checkpointer
from support.commands import Program

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "cli-schema.json").read_text())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Step 1 and 2 differ in one tensor's values; step 3 has another shape, and lacks one."""
    address = (tmp_path_factory.mktemp("runs") / "llama").as_uri()
    first = torch.nn.Linear(3, 2)
    model = torch.nn.ModuleDict({"a": first, "b": torch.nn.Linear(4, 1, bias=False)})
    torch.nn.init.ones_(first.weight)
    with Checkpointer({"model": model, "note": {"text": "x"}}, url=address) as checkpointer:
        checkpointer.restore()
        checkpointer.save(1)
        torch.nn.init.constant_(first.weight, 3.0)
        checkpointer.save(2)
        first.weight = torch.nn.Parameter(torch.ones(2, 4))
        del model["b"]
        checkpointer.save(3)
    return address


@pytest.fixture
def checkpoint(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(Door.BUCKET, capsys)


def test_tree_lists_every_tensor_with_its_shape_and_size(checkpoint: Program, url: str) -> None:
    record = checkpoint("tree", f"{url}@1", "-o", "json").json
    jsonschema.validate(record, SCHEMA)
    items = {each["name"]: each for each in record["items"]}
    assert items["model.a.weight"]["shape"] == [2, 3]
    assert items["model.a.weight"]["dtype"] == "float32"
    assert items["model.a.weight"]["bytes"] == 24
    assert items["note"]["type"] == "value"
    assert record["bytes"] == 24 + 8 + 16
    assert not [name for name in items if "__form__" in name]
    assert "2x3" in checkpoint("tree", f"{url}@1").output


def test_tree_sums_up_modules(checkpoint: Program, url: str) -> None:
    items = {each["name"]: each for each in checkpoint("tree", f"{url}@1", "-d", "2", "-o", "json").json["items"]}
    assert (items["model.a."]["tensors"], items["model.a."]["bytes"]) == (2, 32)


def test_diff_with_values_finds_the_tensor_that_changed(checkpoint: Program, url: str) -> None:
    ran = checkpoint("diff", f"{url}@1", "2", "--values", "-o", "json")
    record = json.loads(ran.output)
    jsonschema.validate(record, SCHEMA)
    changed = [each for each in record["items"] if each["what"] == "value"]
    assert [each["name"] for each in changed] == ["model.a.weight"]
    assert changed[0]["change"] == pytest.approx(2.0)
    assert float(changed[0]["a"]) == pytest.approx(6**0.5, rel=1e-5)
    assert ran.status == 1


def test_diff_compares_snapshots_of_two_runs(checkpoint: Program, url: str, tmp_path: Path) -> None:
    other = (tmp_path / "other").as_uri()
    assert checkpoint("copy", url, other).status == 0
    assert checkpoint("diff", f"{url}@2", f"{other}@2", "--values").status == 0
    ran = checkpoint("diff", f"{url}@1", f"{other}@2", "--values", "-o", "json")
    record = json.loads(ran.output)
    jsonschema.validate(record, SCHEMA)
    assert ran.status == 1
    assert (record["a"].partition("@")[0], record["b"].partition("@")[0]) == (url, other)
    assert [each["name"] for each in record["items"] if each["what"] == "value"] == ["model.a.weight"]
    assert checkpoint("diff", f"{url}@1", f"{(tmp_path / 'absent').as_uri()}@2").status == 3


def test_diff_without_values_compares_shapes_only(checkpoint: Program, url: str) -> None:
    ran = checkpoint("diff", f"{url}@1", "2", "-o", "json")
    assert ran.status == 0
    assert {each["what"] for each in ran.json["items"]} == {"property"}


def test_diff_finds_another_shape_and_what_is_missing(checkpoint: Program, url: str) -> None:
    ran = checkpoint("diff", f"{url}@1", "@3", "-o", "json")
    found = {(each["what"], each["name"]) for each in json.loads(ran.output)["items"]}
    assert {("shape", "model.a.weight"), ("item", "model.b.weight")} <= found
    assert ran.status == 1


def test_a_snapshot_equals_itself(checkpoint: Program, url: str) -> None:
    ran = checkpoint("diff", f"{url}@1", "1", "--values")
    assert (ran.status, ran.output) == (0, "")
    assert "They are equal." in ran.errors


def test_without_torch_the_next_step_is_named(checkpoint: Program, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_torch(name: str, *arguments: Any) -> Any:
        if name == "checkpoint_sidecar.training.dcp.reader":
            raise ImportError("No module named 'torch'", name="torch")
        return importing(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    for verb, *more in (["tree", url], ["diff", url, "1"]):
        ran = checkpoint(verb, *more)
        assert ran.status == 2
        assert "needs torch" in ran.problem


def first_file(url: str) -> Path:
    return next(path for path in Path(url.removeprefix("file://")).glob("step-1/*/*.distcp"))


@pytest.mark.parametrize(
    ("damage", "options", "status", "says"),
    [
        (lambda data: data, (), 0, "sizes"),
        (lambda data: data, ("--checksums",), 0, "checksums"),
        (lambda data: data[:-1], (), 1, "SizeMismatch"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), (), 0, "sizes"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), ("--checksums",), 1, "ChecksumMismatch"),
    ],
)
def test_verify_finds_damage(
    checkpoint: Program, url: str, damage: Callable[[bytes], bytes], options: tuple[str, ...], status: int, says: str
) -> None:
    path = first_file(url)
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(damage(data))
    try:
        ran = checkpoint("verify", f"{url}@1", *options)
    finally:
        path.write_bytes(data)
    assert ran.status == status
    assert says in ran.output


def test_verify_all_checks_every_snapshot(checkpoint: Program, url: str) -> None:
    record = checkpoint("verify", url, "--all", "--checksums", "-o", "json").json
    jsonschema.validate(record, SCHEMA)
    assert [each["result"] for each in record["items"]] == ["ok"] * 3
    assert checkpoint("verify", f"{url}@1", "--all").status == 2


def item(name: str, **changes: Any) -> ItemRecord:
    return ItemRecord(
        name=name, type="tensor", **{"shape": (2,), "dtype": "float32", "tensors": 1, "bytes": 8, **changes}
    )


def test_items_above_the_depth_stay_as_they_are() -> None:
    items = [item("a"), item("b.c"), item("b.d.e"), item("b.d.f")]
    assert [(each.name, each.tensors, each.bytes) for each in as_modules(items, 2)] == [
        ("a", 1, 8),
        ("b.c", 1, 8),
        ("b.d.", 2, 16),
    ]
    assert as_modules(items, 0) == tuple(items)


def test_another_dtype_is_a_difference() -> None:
    found = list(differing_items({"a": item("a")}, {"a": item("a", dtype="bfloat16")}))
    assert [(each.what, each.a, each.b) for each in found] == [("dtype", "float32", "bfloat16")]
