"""A local folder that a trainer insists on, mapped to the bucket by ``install(folders=...)``."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from checkpoint_sidecar.core.errors import CheckpointExistsError, ConfigurationError
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.fsspec.storage_options import settings_of
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter, installed
from checkpoint_sidecar.training.dcp.errors import raising_ours
from checkpoint_sidecar.training.dcp.folders import MappedFolders
from localcluster.objectstore import ObjectStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled", "ignore:Detected an existing checkpoint"
)


class OwnWriter(FileSystemWriter):
    """A trainer's subclass, with behavior that ours lacks."""


def saved(value: float) -> dict[str, Any]:
    return {"x": torch.full((4,), value)}


def load(**where: Any) -> float:
    state = saved(0.0)
    with raising_ours("load"):
        dcp.load(state, **where)
    return float(state["x"][0])


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def folders(local: Path, bucket: Path) -> Mapping[str | os.PathLike[str], str | StoreSettings]:
    return {local: f"file://{bucket}/run"}


def test_what_a_trainer_saves_below_a_mapped_folder_goes_to_the_bucket_and_comes_back(
    local: Path, bucket: Path, folders: Any
) -> None:
    with installed(folders=folders):
        dcp.save(saved(1.0), checkpoint_id=local / "step-1")
        dcp.save(saved(2.0), storage_writer=FileSystemWriter(str(local / "step-2")))
        dcp.save(saved(3.0), storage_writer=dcp.FileSystemWriter(local / "deep" / "er" / "step-3", True, False))
        assert load(checkpoint_id=local / "step-1") == 1
        assert load(storage_reader=FileSystemReader(local / "step-2")) == 2
        assert load(storage_reader=dcp.FileSystemReader(local / "deep/er/step-3", None)) == 3
    assert not local.exists()
    assert {path.name for path in (bucket / "run").iterdir()} == {"step-1", "step-2", "deep"}
    assert load(storage_reader=FileSystemReader(bucket / "run" / "step-2")) == 2  # torch reads what we wrote


def test_the_folder_itself_may_be_the_checkpoint(local: Path, bucket: Path, folders: Any) -> None:
    with installed(folders=folders):
        dcp.save(saved(1.0), checkpoint_id=local)
        dcp.save(saved(2.0), checkpoint_id=local)
        assert load(checkpoint_id=local) == 2
    assert (bucket / "run" / ".metadata").exists()
    assert not local.exists()


def test_other_folders_stay_with_torch(tmp_path: Path, local: Path, folders: Any) -> None:
    with installed(folders=folders):
        for path in (tmp_path / "elsewhere", Path(f"{local}-too"), local / ".." / "beside"):
            writer = FileSystemWriter(path)
            assert type(writer) is FileSystemWriter
            dcp.save(saved(1.0), storage_writer=writer)
            assert files_in(path) == [".metadata", "__0_0.distcp"]
    assert type(FileSystemWriter(local)) is FileSystemWriter
    assert type(FileSystemReader(local)) is FileSystemReader


def test_relative_paths_and_links_lead_to_the_same_checkpoint(
    tmp_path: Path, local: Path, folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.mkdir()
    (tmp_path / "link").symlink_to(local)
    monkeypatch.chdir(tmp_path)
    with installed(folders=folders):
        dcp.save(saved(5.0), checkpoint_id="checkpoints/step-1")
        assert load(checkpoint_id=tmp_path / "link" / "step-1") == 5
        assert load(checkpoint_id=local.resolve() / "x" / ".." / "step-1") == 5
    with installed(folders={tmp_path / "link": f"file://{tmp_path}/bucket/run"}):
        assert load(checkpoint_id=local / "step-1") == 5
    assert files_in(local) == []


def test_a_writer_keeps_its_folders_in_a_process_that_did_not_install(local: Path, folders: Any) -> None:
    with installed(folders=folders):
        sent = [pickle.dumps(each) for each in (FileSystemWriter(local / "a"), FileSystemReader(local / "a"))]
    writer, reader = (pickle.loads(each) for each in sent)
    dcp.save(saved(1.0), checkpoint_id=local / "b", storage_writer=writer)
    assert load(checkpoint_id=local / "b", storage_reader=reader) == 1
    assert not local.exists()


def test_subclasses_and_objects_made_for_another_folder_are_refused(tmp_path: Path, local: Path, folders: Any) -> None:
    with installed(folders=folders):
        with pytest.raises(ConfigurationError, match="to which OwnWriter cannot write"):
            OwnWriter(local / "step-1")
        for stock in (FileSystemWriter, FileSystemReader):
            with pytest.raises(ConfigurationError, match="install\\(\\) maps this folder"):
                stock(tmp_path / "elsewhere").reset(local / "step-1")
        OwnWriter(tmp_path / "elsewhere")
        with pytest.raises(ConfigurationError, match="stream extensions"):
            FileSystemReader(local / "step-1", object())  # type: ignore[arg-type]
    assert not local.exists()


def test_a_checkpoint_that_torch_wrote_before_is_loaded_until_the_bucket_has_one(
    local: Path, folders: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [each.message for each in caplog.records if each.name.startswith("checkpoint_sidecar")]

    dcp.save(saved(1.0), checkpoint_id=local / "step-1")
    before = {name: (local / name).read_bytes() for name in files_in(local)}
    with installed(folders=folders):
        assert load(checkpoint_id=local / "step-1") == 1
        assert ["loading the one that torch wrote to" in message for message in warnings()] == [True]
        caplog.clear()
        dcp.save(saved(2.0), storage_writer=FileSystemWriter(local / "step-1", overwrite=False))
        assert load(checkpoint_id=local / "step-1") == 2
        with pytest.raises(CheckpointExistsError), raising_ours("save"):
            dcp.save(saved(3.0), storage_writer=FileSystemWriter(local / "step-1", overwrite=False))
        with pytest.raises(CheckpointException):
            dcp.load(saved(0.0), checkpoint_id=local / "step-2")
    assert warnings() == []
    assert {name: (local / name).read_bytes() for name in files_in(local)} == before


@pytest.mark.parametrize(
    ("folders", "cause"),
    [
        ({"checkpoints": "s3://b/run"}, "it is a relative path"),
        ({"": "s3://b/run"}, "it is a relative path"),
        ({"/": "s3://b/run"}, "it is the root of all folders"),
        ({"/x/..": "s3://b/run"}, "it is the root of all folders"),
        ({"s3://b/run": "/checkpoints"}, "it is a URL"),
        ({"/work/s3:/b": "s3://b/run"}, "taken for a local path"),
        ({"/checkpoints": "/data/run"}, "is not a URL that install\\(\\) serves"),
        ({"/checkpoints": "hf://me/run"}, "is not a URL that install\\(\\) serves"),
        ({"/checkpoints": "s3://b/a b"}, "the path contains"),
        ({"/a": "s3://b/one", "/a/b": "s3://b/two"}, "it overlaps the folder /a,"),
        ({"/a/b": "s3://b/one", "/a/": "s3://b/two"}, "it overlaps the folder /a/b,"),
        ({"/a": "s3://b/one", "/b/../a/": "s3://b/two"}, "it overlaps the folder /a,"),
        ({"/a": "s3://b/run", "/b": "s3://b/run/two/"}, "its URL s3://b/run/two overlaps that of /a, s3://b/run"),
    ],
)
def test_folders_that_cannot_be_mapped_are_refused(folders: dict[Any, Any], cause: str) -> None:
    before = FileSystemWriter.__init__
    with pytest.raises(ConfigurationError, match=cause) as refusal, installed(folders=folders):
        pass
    assert str(refusal.value).endswith(".")
    assert FileSystemWriter.__init__ is before


def test_several_folders_and_settings_are_kept_apart(tmp_path: Path) -> None:
    mapped = MappedFolders.of(
        {tmp_path / "a": "s3://b/one/", str(tmp_path / "ab"): StoreSettings("s3://b/two", endpoint="http://s3")}
    )
    inner = {name: mapped.settings_of(tmp_path / name) for name in ("a/x", "ab/x", "a", "c/x")}
    assert {name: settings and settings.url for name, settings in inner.items()} == {
        "a/x": "s3://b/one/x",
        "ab/x": "s3://b/two/x",
        "a": "s3://b/one",
        "c/x": None,
    }
    assert inner["ab/x"]
    assert inner["ab/x"].endpoint == "http://s3"
    assert mapped.settings_of(f"file://{tmp_path}/a/x") is None


@pytest.mark.store
def test_a_mapped_folder_is_served_by_a_real_store(object_store: ObjectStore, local: Path) -> None:
    settings = settings_of(f"s3://{object_store.bucket()}/run", object_store.storage_options())
    with installed(folders={local: settings}):
        writer, reader = FileSystemWriter(local / "step-7"), FileSystemReader(local / "step-7")
        assert isinstance(writer, CheckpointWriter)
        assert isinstance(reader, CheckpointReader)
        dcp.async_save(saved(7.0), storage_writer=writer, no_dist=True).result()  # type: ignore[union-attr]
        assert load(storage_reader=reader) == 7
    assert not local.exists()
