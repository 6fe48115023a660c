"""Which arguments, options and URLs of existing DCP code the drop-in serves, by its classes or once installed."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._storage_utils import _storage_setup
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings
from checkpoint_sidecar.store.fsspec.storage_options import settings_of
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter, installed
from doubles.memory import MemoryStore
from localcluster.objectstore import ObjectStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled", "ignore:Detected an existing checkpoint"
)


def test_torchs_constructor_arguments_are_accepted(tmp_path: Path) -> None:
    CheckpointWriter(
        tmp_path,
        single_file_per_rank=False,
        sync_files=False,
        thread_count=4,
        per_thread_copy_ahead=0,
        cache_staged_state_dict=True,
        overwrite=False,
        auto_mkdir=True,
    )


@pytest.mark.parametrize(
    "option",
    [
        {"_extensions": [object()]},
        {"mystery": 1},
        {"client_kwargs": {"mystery": 1}},
        {"config_kwargs": {"proxies": {"https": "http://proxy:3128"}}},
        {"config_kwargs": {"s3": {"use_accelerate_endpoint": True}}},
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        CheckpointWriter(tmp_path, **option)


def test_another_checkpoint_id_keeps_the_storage_options(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[StoreSettings] = []

    def opens(settings: StoreSettings) -> MemoryStore:
        opened.append(settings)
        return MemoryStore(settings.url)

    monkeypatch.setattr("checkpoint_sidecar.training.dcp.dropin.open_store", opens)
    for storage in (
        CheckpointWriter("s3://b/one", endpoint_url="http://s3"),
        CheckpointReader("s3://b/one", key="k", secret="s"),
    ):
        storage.reset("s3://b/two")
        assert storage.checkpoint_id == "s3://b/two"
    assert [settings.url for settings in opened] == ["s3://b/one"] * 2 + ["s3://b/two"] * 2
    assert opened[2].endpoint == "http://s3"
    assert opened[3].credentials == opened[1].credentials != AMBIENT


@pytest.mark.parametrize(
    ("path", "options", "settings"),
    [
        pytest.param("relative", {}, StoreSettings(f"file://{Path('relative').absolute()}"), id="a local path"),
        pytest.param("s3://b/p/", {}, StoreSettings("s3://b/p"), id="ambient credentials"),
        pytest.param(
            "s3://b/p",
            {
                "key": "k",
                "secret": "s",
                "token": "t",
                "client_kwargs": {"endpoint_url": "http://h", "region_name": "r"},
            },
            StoreSettings(
                "s3://b/p",
                "http://h",
                "r",
                credentials=Credentials.of(
                    {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
                ),
            ),
            id="everything of s3fs",
        ),
        pytest.param(
            "s3a://b/p",
            {"config_kwargs": {"s3": {"addressing_style": "virtual"}}, "max_concurrency": 3},
            StoreSettings("s3://b/p", addressing_style="Virtual"),
            id="an alias, an addressing style, and tuning that means nothing here",
        ),
        pytest.param(
            "gcs://b/p",
            {"token": {"type": "service_account"}},
            StoreSettings(
                "gs://b/p",
                credentials=Credentials.of({"GOOGLE_APPLICATION_CREDENTIALS_JSON": '{"type": "service_account"}'}),
            ),
            id="a service account",
        ),
    ],
)
def test_storage_options_of_fsspec_are_understood(
    path: str, options: dict[str, Any], settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert settings_of(path, options) == settings


def test_installing_puts_these_classes_where_dcp_looks_and_takes_them_away_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def picked() -> list[type]:
        return [type(_storage_setup(None, "s3://bucket/ckpt", reader=reader)) for reader in (False, True)]

    monkeypatch.setattr("checkpoint_sidecar.training.dcp.dropin.open_store", lambda s: MemoryStore(s.url))
    before = picked()
    with installed(trust="full"):
        writer, reader = picked()
        assert issubclass(writer, CheckpointWriter)
        assert issubclass(reader, CheckpointReader)
        assert reader.default_trust == "full"
        with installed():
            pass
    assert picked() == before
    assert [each.__name__ for each in before] == ["FsspecWriter", "FsspecReader"]


def test_what_was_installed_can_be_sent_to_a_process_that_saves(tmp_path: Path) -> None:
    with installed(trust="full"):
        writer, reader = dcp.FsspecWriter(f"file://{tmp_path}"), dcp.FsspecReader(f"file://{tmp_path}")
        sent = [pickle.loads(pickle.dumps(each)) for each in (writer, reader)]
    dcp.save({"x": torch.full((4,), 7.0), "path": tmp_path}, storage_writer=sent[0])
    state: dict[str, Any] = {"x": torch.zeros(4), "path": None}
    dcp.load(state, storage_reader=sent[1])
    assert torch.equal(state["x"], torch.full((4,), 7.0))
    assert state["path"] == tmp_path


@pytest.mark.parametrize("url", ["memory://folder/ckpt", "simplecache::memory://folder/ckpt"])
def test_urls_that_we_do_not_serve_stay_with_the_classes_that_were_replaced(url: str) -> None:
    loaded = {"x": torch.zeros(4)}
    with installed():
        written_to = url.removeprefix("simplecache::")
        dcp.save({"x": torch.ones(4)}, checkpoint_id=written_to)
        dcp.save({"x": torch.ones(4)}, storage_writer=dcp.FsspecWriter(path=written_to, sync_files=False))
        dcp.load(loaded, checkpoint_id=url)
        assert type(dcp.FsspecReader(url)).__module__.startswith("torch.")
    assert torch.equal(loaded["x"], torch.ones(4))


@pytest.mark.parametrize("name", ["a b", "a#b", "a%20b", "a?b", "ä", "a//b", "..", "$(X)"])
@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "s3a"])
def test_the_reason_why_a_url_is_refused_is_not_hidden(scheme: str, name: str) -> None:
    with installed():
        for start in (dcp.save, dcp.load):
            with pytest.raises(ConfigurationError, match="the path contains") as refusal:
                start({"x": torch.zeros(1)}, checkpoint_id=f"{scheme}://bucket/{name}/step-1")
            assert "Use s3://" in str(refusal.value)


def test_a_url_that_became_a_local_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    misdirected = (Path("s3://bucket/ckpt"), "gs:/bucket/ckpt", tmp_path / "abfs:" / "bucket", "hf:/me/it")
    for path in misdirected:
        for storage in (CheckpointWriter, CheckpointReader):
            with pytest.raises(ConfigurationError, match="taken for a local path"):
                storage(path)
    with installed():
        for path in (*misdirected, "s3://bucket/ckpt"):
            for stock in (FileSystemWriter, FileSystemReader):
                with pytest.raises(ConfigurationError, match="taken for a local path"):
                    stock(path)
            with pytest.raises(ConfigurationError, match="taken for a local path"):
                Path(path).mkdir(parents=True)
        dcp.save({"x": torch.ones(1)}, storage_writer=FileSystemWriter(tmp_path / "step:5" / "c:"))
        assert [each.name for each in tmp_path.iterdir()] == ["step:5"]
    FileSystemWriter("s3:/bucket/ckpt")


def test_nothing_is_written_into_a_folder_that_an_earlier_run_named_like_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("s3:", "file:"):
        Path(folder, "bucket").mkdir(parents=True)
        Path(folder, "bucket", "old").write_text("left behind")
    Path("new").write_text("new")
    target = Path("s3://bucket/new")
    attempts: list[Callable[[], object]] = [
        lambda: target.write_text("new"),
        lambda: target.open("ab"),
        lambda: Path("file:///bucket/old").write_bytes(b""),
        lambda: os.open(target, os.O_CREAT | os.O_WRONLY),
        lambda: os.replace("new", target),
        lambda: shutil.move("new", target),
        lambda: os.link("new", target),
        lambda: target.symlink_to("new"),
        lambda: Path("file:///bucket").mkdir(exist_ok=True),
        lambda: torch.serialization.save({}, Path("s3:/bucket/step-1") / "x.pt"),
    ]
    with installed():
        for attempt in attempts[:-1]:
            with pytest.raises(ConfigurationError, match="taken for a local path"):
                attempt()
        with pytest.raises(RuntimeError, match="does not exist"):
            attempts[-1]()
        assert Path("s3:/bucket/old").read_text() == "left behind"
        shutil.rmtree("s3:")
    assert Path("new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file:", "new"]


@pytest.mark.store
def test_code_that_only_passes_a_url_is_served_once_installed(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{object_store.bucket()}/run/step-5"
    state: dict[str, Any] = {"x": torch.randn(100), "step": 5}
    with installed():
        dcp.save(state, checkpoint_id=url)
        saving = dcp.async_save({**state, "step": 6}, checkpoint_id=url, no_dist=True)
        assert isinstance(saving, Future)
        saving.result()
        loaded: dict[str, Any] = {"x": torch.zeros(100), "step": 0}
        dcp.load(loaded, checkpoint_id=url)
    assert torch.equal(loaded["x"], state["x"])
    assert loaded["step"] == 6
    assert fsspec.filesystem("s3", **object_store.storage_options()).exists(f"{url}/_log")


@pytest.mark.store
def test_programs_that_look_through_fsspec_see_what_was_saved(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    root = f"s3://{object_store.bucket()}/run"
    system = fsspec.filesystem("s3", **object_store.storage_options())
    with installed():
        for step in range(1, 4):
            dcp.save({"x": torch.zeros(1)}, checkpoint_id=f"{root}/step-{step}")
            seen = {path.rpartition("/")[2] for path in system.ls(root)}
            assert seen == {f"step-{number}" for number in range(1, step + 1)}
            assert system.ls(f"{root}/step-{step}")
        # As torchtitan's keep_latest_k does.
        system.rm(f"{root}/step-1", recursive=True)
        dcp.save({"x": torch.zeros(1)}, checkpoint_id=f"{root}/step-2")
        assert not list(open_store(settings_of(f"{root}/step-1", {})).list())
        assert len(system.find(f"{root}/step-2")) == len(list(open_store(settings_of(f"{root}/step-2", {})).list()))
