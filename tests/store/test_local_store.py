"""Local files: what has no counterpart in a bucket."""

from __future__ import annotations

import datetime as dt
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from checkpoint_sidecar.core.errors import (
    DeletionRefusedError,
    NoConditionalWriteError,
    ObjectExistsError,
    ObjectNotFoundError,
    RequestRefusedError,
)
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import LinksObjects, Store
from checkpoint_sidecar.store.common import parts
from checkpoint_sidecar.store.common.partial import LEFTOVER_SECONDS, PARTIAL_FOLDER
from checkpoint_sidecar.store.opening import open_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(StoreSettings(str(root)))


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_objects_are_plain_files_under_the_root(store: Store, root: Path) -> None:
    store.put("_log/1.json", b"data")

    assert files(root) == ["_log/1.json"]
    assert (root / "_log/1.json").read_bytes() == b"data"


def test_links_and_what_is_no_file_are_no_keys(store: Store, root: Path) -> None:
    store.put("step-1/data", b"data")
    (root / "step-1/up").symlink_to("..")
    (root / "latest").symlink_to("step-1")
    (root / "round").symlink_to("round")
    (root / "gone").symlink_to("nowhere")
    (root / "file").symlink_to("step-1/data")
    os.mkfifo(root / "pipe")

    assert [info.key for info in store.list()] == ["file", "step-1/data"]
    assert [info.key for info in store.list("step-1/")] == ["step-1/data"]


def test_a_writer_killed_in_the_middle_leaves_nothing_visible(store: Store, root: Path) -> None:
    program = (
        "import sys, os, signal\n"
        "from checkpoint_sidecar.store.opening import open_store\n"
        "from checkpoint_sidecar.store.access import StoreSettings\n"
        "with open_store(StoreSettings(sys.argv[1])).upload('big', 2**20) as upload:\n"
        "    upload.write_part(0, [bytes(2**20)])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(root)])

    assert killed.returncode == -signal.SIGKILL
    assert list(store.list()) == []
    assert store.stat("big") is None


def test_leftovers_of_killed_writers_are_removed_when_they_are_a_day_old(store: Store, root: Path) -> None:
    partial = root / PARTIAL_FOLDER
    partial.mkdir(parents=True)
    for name, age in (("old", LEFTOVER_SECONDS + 60), ("young", 60)):
        (partial / name).write_bytes(b"half")
        os.utime(partial / name, (time.time() - age,) * 2)

    store.put("a", b"data")

    assert files(root) == [f"{PARTIAL_FOLDER}/young", "a"]


def test_folders_that_a_delete_emptied_are_removed(store: Store, root: Path) -> None:
    store.put("step-1/save/file", b"data")
    store.put("step-1/other", b"data")

    store.delete(["step-1/save/file"])
    assert not (root / "step-1/save").exists()
    store.delete(["step-1/other"])
    assert not (root / "step-1").exists()


def test_creating_and_deleting_in_one_folder_do_not_disturb_each_other(store: Store) -> None:
    def create_and_delete(writer: int) -> None:
        for i in range(30):
            key = f"folder/below/{writer}-{i}"
            store.put_if_absent(key, b"data")
            assert store.stat(key) is not None
            store.delete([key])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create_and_delete, range(4)))
    assert list(store.list()) == []


def test_a_key_below_a_file_is_not_found(store: Store) -> None:
    store.put("file", b"data")

    assert store.stat("file/below") is None
    with pytest.raises(ObjectNotFoundError):
        store.get("file/below", max_bytes=10)


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/passwd"])
def test_no_key_leaves_the_root(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        store.get(key, max_bytes=10)


MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_an_upload_that_the_disk_has_no_room_for_is_refused_before_the_first_byte(small_disk: Path) -> None:
    store = open_store(StoreSettings(str(small_disk)))

    with pytest.raises(
        RequestRefusedError, match=r"upload file://.*/big: No space left on device.*Free space on the file system"
    ):
        store.upload("big", 17 * MIB)

    assert files(small_disk) == []


def test_room_is_taken_when_an_upload_begins_and_given_back_when_it_is_aborted(small_disk: Path) -> None:
    store = open_store(StoreSettings(str(small_disk)))

    with store.upload("first", 12 * MIB) as first:
        with pytest.raises(RequestRefusedError, match="No space left"):
            store.upload("second", 12 * MIB)
        first.abort()
    parts.write_object(store, "second", bytes(12 * MIB))

    assert files(small_disk) == ["second"]


def test_a_disk_that_fills_up_leaves_nothing_of_the_object(small_disk: Path) -> None:
    store = open_store(StoreSettings(str(small_disk)))
    (small_disk / "taken").write_bytes(bytes(10 * MIB))

    with pytest.raises(RequestRefusedError, match=r"write .*No space left on device"):
        store.put("key", bytes(12 * MIB))

    assert files(small_disk) == ["taken"]


def test_a_file_that_may_not_be_deleted_is_refused_as_a_deletion(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlink(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    store.put("key", b"data")
    monkeypatch.setattr(Path, "unlink", unlink)

    with pytest.raises(DeletionRefusedError, match="key: Operation not permitted"):
        store.delete(["key"])
    assert store.stat("key") is not None


def test_more_buffers_than_the_system_takes_at_once_are_written_and_read(store: Store) -> None:
    data = os.urandom(5000)
    with store.upload("key", len(data)) as upload:
        upload.write_part(0, [data[i : i + 1] for i in range(len(data))])
    read = [bytearray(1) for _ in data]
    store.read_into("key", 0, [memoryview(buffer) for buffer in read])

    assert b"".join(read) == data


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EPERM, NoConditionalWriteError),
        (errno.ENOTSUP, NoConditionalWriteError),
        (errno.ENOSPC, RequestRefusedError),
    ],
    ids=["links are forbidden", "links are unknown", "the disk is full"],
)
def test_what_the_file_system_cannot_do_is_reported(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)

    with pytest.raises(error):
        store.put_if_absent("key", b"data")
    assert list(store.list()) == []


def test_a_linked_object_outlives_the_first_one(store: Store, root: Path) -> None:
    assert isinstance(store, LinksObjects)
    store.put("step-1/data", b"data")

    linked = store.link("step-2/copy", "step-1/data")
    store.delete(["step-1/data"])

    assert (linked.key, linked.size) == ("step-2/copy", 4)
    assert files(root) == ["step-2/copy"]
    assert store.get("step-2/copy", max_bytes=4).data == b"data"


def test_a_link_has_the_time_of_its_bytes(store: Store, root: Path) -> None:
    assert isinstance(store, LinksObjects)
    store.put("data", b"data")
    os.utime(root / "data", (1_000_000, 1_000_000))

    assert store.link("copy", "data").modified == dt.datetime.fromtimestamp(1_000_000, dt.UTC)


@pytest.mark.parametrize(("source", "error"), [("data", ObjectExistsError), ("other", ObjectNotFoundError)])
def test_what_cannot_be_linked_is_an_error(store: Store, source: str, error: type[Exception]) -> None:
    assert isinstance(store, LinksObjects)
    store.put("data", b"data")
    with pytest.raises(error):
        store.link("data" if source == "data" else "copy", source)


def test_a_file_system_without_hard_links_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    assert isinstance(store, LinksObjects)
    store.put("data", b"data")
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(RequestRefusedError, match="no hard links"):
        store.link("copy", "data")
