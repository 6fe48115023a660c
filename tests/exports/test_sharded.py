"""What several ranks saved to an S3 server is exported as torch itself puts it together."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from checkpoint_sidecar import open_run
from checkpoint_sidecar.exports.exporting import export
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.http.connections import Connections, HttpRequest
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.store.s3.dialect import S3Dialect
from exports.saving_ranks import LARGE
from localcluster.objectstore import ObjectStore
from support.s3servers import Server
from training.ranks import run_ranks

pytestmark = [pytest.mark.store, pytest.mark.distributed]

SCRIPT = Path(__file__).with_name("saving_ranks.py")


@pytest.fixture(scope="module")
def saved(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> StoreSettings:
    """The runs ``mixed`` and ``large`` lie below the URL."""
    server = Server("seaweedfs", object_store.endpoint, object_store.access_key, object_store.secret_key)
    settings = server.settings()
    folder = tmp_path_factory.mktemp("ranks")
    kept = {"url": settings.url, "endpoint": settings.endpoint, "region": settings.region}
    (folder / "settings.json").write_text(json.dumps(kept | {"credentials": server.credentials}))
    for results in run_ranks(SCRIPT, 2, folder):
        assert {name: text for name, text in results.items() if text} == {}
    return settings


def at(settings: StoreSettings, name: str) -> StoreSettings:
    return replace(settings, url=f"{settings.url}/{name}")


@pytest.fixture(scope="module")
def reference(saved: StoreSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The mixture as torch's own converter puts it together, by flat names."""
    run = open_run(at(saved, "mixed"))
    folder = tmp_path_factory.mktemp("stock")
    path = run.find("latest").commit.path
    for info in run.store.list(f"{path}/"):
        (folder / info.key.rpartition("/")[2]).write_bytes(run.store.get(info.key, max_bytes=1 << 30).data)
    dcp_to_torch_save(folder, folder / "whole.pt")
    tree = torch.load(folder / "whole.pt", weights_only=False)["model"]
    return dict(flat(tree, ""))


def flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value


def in_files(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    return found


@pytest.mark.parametrize("to", ["safetensors", "pt"])
def test_an_export_equals_what_torch_puts_together(
    saved: StoreSettings, reference: dict[str, Any], tmp_path: Path, to: Any
) -> None:
    record = export(at(saved, "mixed"), str(tmp_path), to=to)
    found = in_files(tmp_path) if to == "safetensors" else torch.load(tmp_path / "model.pt")
    assert record.ties == {"head.weight": "embedding.weight"}
    if to == "safetensors":
        assert "head.weight" not in found, "tied weights are written once"
        found["head.weight"] = found["embedding.weight"]
    assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()
    assert found.keys() == reference.keys()
    for name, value in reference.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    assert record.skipped == ("model._extra_state",)
    assert {value.dim() for value in found.values()} == {0, 1, 2}


def test_a_cast_rounds_as_torch_does_across_shards(
    saved: StoreSettings, reference: dict[str, Any], tmp_path: Path
) -> None:
    export(at(saved, "mixed"), str(tmp_path), dtype="bfloat16")
    for name, value in in_files(tmp_path).items():
        wanted = reference[name].bfloat16() if value.is_floating_point() else reference[name]
        assert torch.equal(value, wanted), name


class Sent(Counter[str]):
    """Bytes that this process sends to the server and receives from it."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    counted, lock, exchange = Sent(), threading.Lock(), Connections.exchange

    def counting(self: Connections, request: HttpRequest, **options: Any) -> Any:
        answer = exchange(self, request, **options)
        with lock:
            counted["sent"] += sum(view.nbytes for view in request.body)
            counted["received"] += sum(view.nbytes for view in options.get("into", ())) + len(answer.body)
        return answer

    monkeypatch.setattr(Connections, "exchange", counting)
    return counted


def test_a_store_copies_rows_by_itself(saved: StoreSettings, sent: Sent) -> None:
    record = export(at(saved, "large"), at(saved, "model"))
    assert record.bytes > 128 * 1024 * 1024
    for way in ("sent", "received"):
        assert 0 < sent[way] <= 0.05 * record.bytes, sent
    assert large_tensors(at(saved, "model")) == []


def test_a_store_that_refuses_to_copy_gets_the_bytes(
    saved: StoreSettings, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(S3Dialect, "copied_part", lambda *_: None)
    record = export(at(saved, "large"), at(saved, "refused"))
    assert sent["sent"] > record.bytes
    assert "does not copy ranges" in caplog.text
    assert record.files[0].crc32c
    assert large_tensors(at(saved, "refused")) == []


def large_tensors(settings: StoreSettings) -> list[str]:
    """The names of large tensors that are not what the ranks saved."""
    store = open_store(settings)
    found = safetensors.torch.load(store.get("model.safetensors", max_bytes=1 << 30).data)
    wrong = [] if torch.equal(found.pop("norm"), torch.arange(8192.0)) else ["norm"]
    assert found.keys() == LARGE.keys()
    for number, (name, shape) in enumerate(LARGE.items()):
        for rank, half in enumerate(found[name].chunk(2)):
            wanted = torch.full((shape[0] // 2, shape[1]), float(number + rank))
            wanted[0] = torch.arange(shape[1])
            if not torch.equal(half, wanted):
                wrong.append(f"{name} of rank {rank}")
    return wrong
