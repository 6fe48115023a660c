"""The drop-in: existing DCP code, with its arguments, on a directory that holds one checkpoint at a time."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._storage_utils import _storage_setup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from checkpoint_sidecar.attempt import directory_save
from checkpoint_sidecar.attempt.directory_save import DirectorySave
from checkpoint_sidecar.core.errors import (
    CheckpointExistsError,
    ConfigurationError,
    CorruptSnapshotError,
    DeletionRefusedError,
    FencedError,
    PrefixClaimedError,
    RestoreError,
    StoreError,
)
from checkpoint_sidecar.core.layout import save_folder_of
from checkpoint_sidecar.core.log import Owner, RunClaimed, SnapshotRetired
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.run import Run, SnapshotState
from checkpoint_sidecar.engine.verify import check_sizes
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings
from checkpoint_sidecar.store.fsspec.storage_options import settings_of
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter, installed
from checkpoint_sidecar.training.dcp.errors import raising_ours
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter
from doubles.memory import MemoryStore
from localcluster.objectstore import ObjectStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled", "ignore:Detected an existing checkpoint"
)


def save(path: Path | str, value: float, **options: Any) -> None:
    with raising_ours("save"):
        dcp.save({"x": torch.full((4,), float(value))}, storage_writer=CheckpointWriter(path, **options))


def load(path: Path | str, **options: Any) -> float:
    state = {"x": torch.zeros(4)}
    with raising_ours("load"):
        dcp.load(state, storage_reader=CheckpointReader(path, **options))
    assert (state["x"] == state["x"][0]).all()
    return float(state["x"][0])


def stock_load(path: Path | str) -> float:
    state = {"x": torch.zeros(4)}
    dcp.load(state, storage_reader=FileSystemReader(path))
    return float(state["x"][0])


def state_of(path: Path) -> Run:
    return RunLog(open_store(StoreSettings(f"file://{path}")), writer="test").refresh()


def saves_in(path: Path) -> set[str]:
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return {folder.path for file in files if (folder := save_folder_of(file))}


def test_a_checkpoint_is_read_back_by_us_and_by_torch(tmp_path: Path) -> None:
    save(tmp_path / "ckpt", 1)
    assert load(tmp_path / "ckpt") == 1
    assert stock_load(tmp_path / "ckpt") == 1


def test_overwriting_replaces_what_both_readers_see(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        save(tmp_path, value)
        assert load(tmp_path) == value
        assert stock_load(tmp_path) == value


def test_at_most_two_checkpoints_exist_however_often_it_is_overwritten(tmp_path: Path) -> None:
    for value in range(5):
        save(tmp_path, value)
        assert len(saves_in(tmp_path)) == min(value + 1, 2)
    states = [snapshot.state for snapshot in state_of(tmp_path).snapshots.values()]
    assert states == [SnapshotState.PURGED] * 3 + [SnapshotState.RETIRED, SnapshotState.LIVE]


def test_the_replaced_checkpoint_is_retired_only_after_the_new_one_was_checked(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    *_, newest = state_of(tmp_path).snapshots.values()
    assert newest.verified == "Sizes"
    assert newest.commit.replaces == newest.commit.parent != ""


def test_without_overwrite_an_existing_checkpoint_stays(tmp_path: Path) -> None:
    save(tmp_path, 1, overwrite=False)
    head = state_of(tmp_path).head
    with pytest.raises(CheckpointExistsError, match="Checkpoint already exists"):
        save(tmp_path, 2, overwrite=False)
    assert state_of(tmp_path).head == head, "a refused save must not fence a running one"
    assert load(tmp_path) == 1


def test_the_refusal_looks_to_existing_code_like_torchs_own(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointException, match="Checkpoint already exists"):
        dcp.save({"x": torch.zeros(4)}, storage_writer=CheckpointWriter(tmp_path, overwrite=False))


def test_a_checkpoint_that_torch_wrote_counts_as_existing(tmp_path: Path) -> None:
    dcp.save({"x": torch.full((4,), 5.0)}, storage_writer=FileSystemWriter(tmp_path))
    with pytest.raises(CheckpointExistsError, match="torch wrote"):
        save(tmp_path, 1, overwrite=False)
    assert load(tmp_path) == 5
    save(tmp_path, 6)
    assert load(tmp_path) == stock_load(tmp_path) == 6


def die(*_: object, **__: object) -> None:
    """Where a process ends without another word."""
    raise KeyboardInterrupt


def save_and_die(path: Path, place: object, name: str) -> None:
    """A save during which calling ``name`` of ``place`` ends the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, die)
        with pytest.raises(CheckpointException):
            dcp.save({"x": torch.full((4,), 2.0)}, storage_writer=CheckpointWriter(path))


@pytest.mark.parametrize("moment", ["commit", "publish", "_retire"])
def test_a_save_that_dies_leaves_one_whole_checkpoint_and_the_next_one_clears_up(tmp_path: Path, moment: str) -> None:
    save(tmp_path, 1)
    save_and_die(tmp_path, directory_save if moment == "publish" else DirectorySave, moment)
    survivor = 1 if moment == "commit" else 2
    assert load(tmp_path) == survivor
    assert stock_load(tmp_path) in (1, survivor)
    save(tmp_path, 3)
    save(tmp_path, 4)
    assert load(tmp_path) == stock_load(tmp_path) == 4
    assert len(saves_in(tmp_path)) == 2


def test_a_purge_that_was_cut_off_is_finished_by_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    save_and_die(tmp_path, directory_save, "delete_save")
    first, *_ = state_of(tmp_path).snapshots.values()
    assert first.state is SnapshotState.PURGING
    save(tmp_path, 3)
    first, *_ = state_of(tmp_path).snapshots.values()
    assert first.state is SnapshotState.PURGED
    assert load(tmp_path) == stock_load(tmp_path) == 3


def test_a_store_that_forbids_deleting_still_takes_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore("s3://bucket/ckpt")

    def refuse(_: Any) -> None:
        raise DeletionRefusedError("delete", "objects", "403")

    monkeypatch.setattr(store, "delete", refuse)
    for value in (1.0, 2.0, 3.0):
        target = DirectorySave(store, overwrite=True, world_size=1)
        dcp.save({"x": torch.full((4,), value)}, storage_writer=SnapshotWriter(store, target))
    assert RunLog(store, writer="test").refresh().newest is not None


def test_a_save_that_another_one_overtook_is_fenced() -> None:
    store = MemoryStore("s3://bucket/ckpt")
    slow, fast = (DirectorySave(store, overwrite=True, world_size=1) for _ in range(2))
    save_of_the_slow_one = slow.begin()
    fast.begin()
    manifest = Manifest(save_of_the_slow_one.snapshot, 0, 1, 1, ())
    with pytest.raises(FencedError):
        slow.commit(save_of_the_slow_one, manifest, "0" * 64)


def test_the_root_of_somebodys_run_is_not_written_to() -> None:
    store = MemoryStore("s3://bucket/run")
    RunLog(store, writer="test").append(lambda _: RunClaimed(Owner("uid", "team", "llama")))
    with pytest.raises(PrefixClaimedError, match="uid/team/llama"):
        DirectorySave(store, overwrite=True, world_size=1).begin()


def test_a_checkpoint_whose_file_the_store_lost_is_not_reported_as_saved(tmp_path: Path) -> None:
    class Losing(MemoryStore):
        @contextmanager
        def upload(self, key: str, size: int) -> Iterator[Any]:
            with super().upload(key, size) as upload:
                yield upload
            if key.startswith("0002") and key.endswith(".distcp"):
                self.delete([key])

    store = Losing("s3://bucket/ckpt")

    def save_once() -> None:
        target = DirectorySave(store, overwrite=True, world_size=1)
        with raising_ours("save"):
            dcp.save({"x": torch.zeros(4)}, storage_writer=SnapshotWriter(store, target))

    save_once()
    with pytest.raises(CorruptSnapshotError, match="does not exist"):
        save_once()
    first, second = RunLog(store, writer="test").refresh().snapshots.values()
    assert first.live
    assert second.failures == 1


@pytest.mark.parametrize("fault", ["the store lost a file", "the store did not say"])
@pytest.mark.parametrize("saves_before", [0, 1])
def test_after_a_save_that_could_not_be_verified_both_readers_give_the_same_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, saves_before: int
) -> None:
    if saves_before:
        save(tmp_path, 1)

    def check(store: Any, folder: str, files: Any, **_: Any) -> None:
        if fault == "the store did not say":
            raise StoreError("stat", "an object", "503")
        (file,) = tmp_path.glob(f"{folder}/*.distcp")
        file.unlink()
        check_sizes(store, folder, files)

    with monkeypatch.context() as patch:
        patch.setattr(directory_save, "check_sizes", check)
        if fault == "the store did not say":
            save(tmp_path, 2)
            expected: float | None = 2
        else:
            with pytest.raises(CorruptSnapshotError, match="does not exist"):
                save(tmp_path, 2)
            expected = 1 if saves_before else None
    if expected is None:
        with pytest.raises(RestoreError):
            load(tmp_path)
        assert not (tmp_path / ".metadata").exists()
    else:
        assert load(tmp_path) == stock_load(tmp_path) == expected
    save(tmp_path, 3)
    assert load(tmp_path) == stock_load(tmp_path) == 3


def test_reading_a_directory_where_everything_was_retired_says_so(tmp_path: Path) -> None:
    save(tmp_path, 1)
    log = RunLog(open_store(StoreSettings(f"file://{tmp_path}")), writer="test")
    newest = log.refresh().newest
    assert newest is not None
    log.append(lambda _: SnapshotRetired(newest, ("Test",)))
    with pytest.raises(RestoreError, match="retired"):
        load(tmp_path)


def test_a_flipped_bit_is_found_on_load(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (data,) = tmp_path.glob("*/*.distcp")
    content = bytearray(data.read_bytes())
    content[-300] ^= 4
    data.write_bytes(content)
    with pytest.raises(CorruptSnapshotError, match="CRC32C"):
        load(tmp_path)


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


@pytest.mark.store
def test_torchs_own_reader_loads_from_s3_what_we_saved_there(object_store: ObjectStore) -> None:
    url, options = f"s3://{object_store.bucket()}/ckpt", object_store.storage_options()
    for value in (1, 2, 3):
        save(url, value, **options)
    assert load(url, **options) == 3
    state = {"x": torch.zeros(4)}
    dcp.load(state, storage_reader=dcp.FsspecReader(url, **options))
    assert torch.equal(state["x"], torch.full((4,), 3.0))


@pytest.mark.store
def test_we_load_from_s3_what_torch_saved_there(object_store: ObjectStore) -> None:
    url, options = f"s3://{object_store.bucket()}/ckpt", object_store.storage_options()
    dcp.save({"x": torch.full((4,), 8.0)}, storage_writer=dcp.FsspecWriter(url, sync_files=False, **options))
    assert load(url, **options) == 8
