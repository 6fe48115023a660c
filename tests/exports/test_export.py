"""A snapshot becomes files that other programs read; an interruption leaves whole files only, and is continued."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from checkpoint_sidecar import (
    Checkpointer,
    CheckpointExistsError,
    ConfigurationError,
    CorruptSnapshotError,
    SnapshotNotFoundError,
    export,
    open_run,
)
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.exports.exporting import ExportSettings, prepare_export
from checkpoint_sidecar.exports.writing import FileWriter
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

MIB = 1024 * 1024


def save(url: str, model: nn.Module, *steps: int) -> str:
    with Checkpointer({"model": model}, url) as checkpointer:
        checkpointer.restore()
        for step in steps:
            checkpointer.save(step)
    return url


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))


@pytest.fixture(scope="module")
def run(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(f"file://{tmp_path_factory.mktemp('runs')}/run", model, 10, 20)


SHARD = 40_000
"""Two layers of 64 x 64."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def assert_equal(folder: Path, model: nn.Module) -> None:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_shards_have_an_index_and_say_where_they_are_from(run: str, model: nn.Module, tmp_path: Path) -> None:
    record = export(f"{run}@10", str(tmp_path), to="hf", shard_bytes=SHARD)
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert names(tmp_path) == sorted([*shards, "model.safetensors.index.json", "export.json"])
    assert not (tmp_path / ".partial").exists()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in model.state_dict().values())
    assert index["metadata"]["manifest_digest"] == record.manifest_digest
    for shard in shards:
        with safe_open(tmp_path / shard, framework="pt") as opened:
            assert {index["weight_map"][name] for name in opened.keys()} == {shard}  # noqa: SIM118
            assert opened.metadata()["format"] == "pt"
            assert opened.metadata()["snapshot"] == record.snapshot
    assert_equal(tmp_path, model)
    assert open_run(run).find(10).commit.manifest_digest == record.manifest_digest


def test_transformers_reads_an_export(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    trained: Any = LlamaForCausalLM(config)
    trained.to(torch.bfloat16)
    config.save_pretrained(tmp_path / "config")
    url = save(f"file://{tmp_path}/run", trained, 1)
    export(url, str(tmp_path / "hf"), to="hf", shard_bytes=20_000, beside=[tmp_path / "config" / "config.json"])
    pretrained: Any = LlamaForCausalLM
    loaded, about = pretrained.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16, output_loading_info=True)
    assert not any(about.values()), about
    wanted = trained.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in loaded.state_dict().items())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


class KilledError(Exception):
    """In place of a kill."""


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make writers die before they write another file than so many."""
    write = FileWriter.write

    def after(files: int) -> list[str]:
        written: list[str] = []

        def dying(self: FileWriter, file: Any) -> Any:
            if len(written) == files:
                raise KilledError
            written.append(file.name)
            return write(self, file)

        monkeypatch.setattr(FileWriter, "write", dying)
        return written

    return after


def test_an_interrupted_export_continues_behind_its_complete_shards(
    run: str, model: nn.Module, tmp_path: Path, dies: Any
) -> None:
    dies(2)
    with pytest.raises(KilledError):
        export(run, str(tmp_path), shard_bytes=SHARD)
    assert names(tmp_path) == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2)]
    with pytest.raises(CheckpointExistsError):
        export(f"{run}@10", str(tmp_path), shard_bytes=SHARD)
    written = dies(3)
    counted: list[int] = []
    export(run, str(tmp_path), shard_bytes=SHARD, progress=counted.append)
    assert written == ["model-00003-of-00003.safetensors"]
    assert sum(counted) == (tmp_path / written[0]).stat().st_size
    assert_equal(tmp_path, model)
    written.clear()
    before = (tmp_path / "export.json").stat().st_mtime_ns
    again = export(run, str(tmp_path), shard_bytes=SHARD)
    assert (written, again.tensors) == ([], 12)
    assert (tmp_path / "export.json").stat().st_mtime_ns == before, "a complete export is left as it is"


def test_ctrl_c_in_the_middle_of_a_file_leaves_none(tmp_path: Path) -> None:
    url = save(f"file://{tmp_path}/run", nn.Linear(1024, 8192, bias=False), 1)
    # Where tests run in the background of a shell, SIGINT is ignored, also by what they start.
    program = f"""
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from checkpoint_sidecar import export
from checkpoint_sidecar.store.local import adapter

write = adapter.write_from
def slow(*arguments):
    write(*arguments)
    print("writing", flush=True)
    time.sleep(1)
adapter.write_from = slow
export({url!r}, {str(tmp_path / "out")!r})
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert names(tmp_path / "out") == []
    export(url, str(tmp_path / "out"))
    assert "export.json" in names(tmp_path / "out")


def test_another_export_is_replaced_only_on_request(run: str, model: nn.Module, tmp_path: Path) -> None:
    export(f"{run}@10", str(tmp_path), shard_bytes=SHARD)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for change in ({"dtype": "bfloat16"}, {"shard_bytes": SHARD // 2}, {"selector": 20}, {"strip": ["0."]}):
        with pytest.raises(CheckpointExistsError, match=r"it exists already.*--overwrite"):
            export(run, str(tmp_path), **{"selector": 10, "shard_bytes": SHARD, **change})  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    export(f"{run}@20", str(tmp_path), overwrite=True)
    assert names(tmp_path) == ["export.json", "model.safetensors"], "the other shards and their index are gone"
    assert_equal(tmp_path, model)


def test_files_that_are_no_export_are_not_replaced(run: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine too")
    with pytest.raises(CheckpointExistsError, match=r"model\.safetensors"):
        export(run, str(tmp_path))
    export(run, str(tmp_path), overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine too"


def test_an_export_never_goes_into_the_run(run: str) -> None:
    for url in (run, f"{run}/exports"):
        with pytest.raises(ConfigurationError, match="inside the run"):
            export(run, url)


def test_damage_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    url = save(f"file://{tmp_path}/run", nn.Linear(64, 64), 1)
    (data,) = tmp_path.glob("run/step-1/*/__0_0.distcp")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.chmod(0o644)
    data.write_bytes(content)
    with pytest.raises(CorruptSnapshotError, match="CRC32C"):
        export(url, str(tmp_path / "out"))
    assert names(tmp_path / "out") == []


def test_a_snapshot_that_is_deleted_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = save(f"file://{tmp_path}/run", nn.Linear(8, 8), 100, 200)
    run = open_run(url)
    run.configure(Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0)))
    run.verify(200, checksums=True, record=True)
    target = open_store(StoreSettings(f"file://{tmp_path}/out"))
    prepared = prepare_export(run, run.find(100), target, ExportSettings())
    assert run.prune().purge
    with pytest.raises(SnapshotNotFoundError, match=r"it is purged\. Hold"):
        prepared.carry_out()
    assert names(tmp_path / "out") == []


def test_memory_stays_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of a cast tensor and rows of a plain one, several times the limit together."""
    monkeypatch.setenv("CHECKPOINT_MEMORY", "64Mi")
    model = nn.ModuleList([nn.Linear(4096, 8192, bias=False), nn.Linear(4096, 8192, bias=False)])
    url = save(f"file://{tmp_path}/run", model, 1)
    del model
    for options in ({}, {"dtype": "bfloat16"}):
        tracemalloc.start()
        try:
            export(url, str(tmp_path / f"out{len(options)}"), **options)  # type: ignore[arg-type]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 80 * MIB, options


def test_a_run_without_torch_exports_safetensors(run: str, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["torch"] = sys.modules["numpy"] = None
from checkpoint_sidecar import export
export({run!r}, {str(tmp_path / "out")!r})
for options in ({{"to": "pt"}}, {{"dtype": "float16"}}):
    try:
        export({run!r}, {str(tmp_path / "other")!r}, **options)
    except Exception as error:
        print(error)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.count("needs torch, which is not installed") == 2
    assert names(tmp_path / "out") == ["export.json", "model.safetensors"]
    assert not (tmp_path / "other").exists()
