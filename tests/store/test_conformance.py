"""What every store promises, asked of the double in memory, of local files, and of two S3 servers by two adapters."""

from __future__ import annotations

import datetime as dt
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from checkpoint_sidecar.core.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    TruncatedObjectError,
)
from checkpoint_sidecar.store import parts
from checkpoint_sidecar.store.base import Buffer, Store
from checkpoint_sidecar.store.opening import Driver, open_store
from checkpoint_sidecar.store.probe import probe
from doubles.memory import MemoryStore
from s3servers import Server

MIB = 1024 * 1024
PART = 5 * MIB
KEY = "step-00000001/0001-abcdefgh/__0_0.distcp"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest parts that S3 allows."""
    monkeypatch.setattr(parts, "PART_BYTES", PART)


def keys(store: Store, prefix: str = "", **options: str) -> list[str]:
    return [info.key for info in store.list(prefix, **options)]


def read(store: Store, key: str) -> bytes:
    return store.get(key, max_bytes=MIB).data


@pytest.mark.parametrize("write", ["put", "put_if_absent"])
@pytest.mark.parametrize(
    "data",
    [b"", b"hello", bytearray(b"mutable"), memoryview(b"a view"), bytes(range(256)) * 1000],
    ids=["nothing", "bytes", "bytearray", "memoryview", "binary"],
)
def test_what_is_written_is_read_back(store: Store, write: str, data: Buffer) -> None:
    getattr(store, write)(KEY, data)

    stored = store.get(KEY, max_bytes=MIB)
    assert stored.data == bytes(data)
    assert stored.info == store.stat(KEY)
    assert (stored.info.key, stored.info.size) == (KEY, len(data))


def test_the_date_is_the_stores_and_in_utc(store: Store) -> None:
    store.put(KEY, b"data")

    modified = store.get(KEY, max_bytes=MIB).info.modified
    assert modified.tzinfo == dt.UTC
    assert abs(dt.datetime.now(dt.UTC) - modified) < dt.timedelta(seconds=10)


def test_put_replaces(store: Store) -> None:
    store.put(KEY, b"old and longer")
    store.put(KEY, b"new")

    assert read(store, KEY) == b"new"


def test_put_if_absent_refuses_a_taken_key_and_changes_nothing(store: Store) -> None:
    store.put_if_absent(KEY, b"first")

    with pytest.raises(ObjectExistsError):
        store.put_if_absent(KEY, b"second")
    assert read(store, KEY) == b"first"


def test_a_deleted_key_can_be_created_again(store: Store) -> None:
    store.put_if_absent(KEY, b"first")
    store.delete([KEY])
    store.put_if_absent(KEY, b"second")

    assert read(store, KEY) == b"second"


def test_of_16_threads_that_create_one_key_exactly_one_wins(store: Store, request: pytest.FixtureRequest) -> None:
    if "moto" in request.node.name:
        pytest.skip("moto checks and then writes, without a lock between")
    for turn in range(3):
        key, barrier = f"_log/{turn:020d}.json", threading.Barrier(16)

        def create(writer: int, key: str = key, barrier: threading.Barrier = barrier) -> int | None:
            barrier.wait()
            try:
                store.put_if_absent(key, b"%d" % writer)
            except ObjectExistsError:
                return None
            return writer

        with ThreadPoolExecutor(16) as pool:
            winners = [winner for winner in pool.map(create, range(16)) if winner is not None]
        assert len(winners) == 1
        assert read(store, key) == b"%d" % winners[0]


@pytest.mark.parametrize("write", ["put", "put_if_absent", "upload", "delete"])
def test_a_write_is_seen_by_everybody_at_once(store: Store, write: str) -> None:
    other = store if isinstance(store, MemoryStore) else pickle.loads(pickle.dumps(store))
    assert other.stat(KEY) is None
    assert keys(other) == []

    if write == "upload":
        with store.upload(KEY) as upload:
            upload.write(b"data")
    elif write == "delete":
        store.put(KEY, b"data")
        assert keys(other) == [KEY]
        store.delete([KEY])
    else:
        getattr(store, write)(KEY, b"data")

    assert keys(other) == ([] if write == "delete" else [KEY])
    assert (other.stat(KEY) is None) == (write == "delete")


def test_a_missing_object_is_not_found_by_any_read(store: Store) -> None:
    store.put("present", b"data")

    assert store.stat("missing") is None
    with pytest.raises(ObjectNotFoundError, match="missing"):
        store.get("missing", max_bytes=10)
    with pytest.raises(ObjectNotFoundError, match="missing"):
        store.get_range("missing", 0, 1)


def test_a_folder_is_not_an_object(store: Store) -> None:
    store.put("folder/object", b"data")

    assert store.stat("folder") is None
    with pytest.raises(ObjectNotFoundError):
        store.get("folder", max_bytes=10)


def test_get_refuses_an_object_above_the_limit(store: Store) -> None:
    store.put(KEY, b"12345")

    assert store.get(KEY, max_bytes=5).data == b"12345"
    with pytest.raises(ObjectTooLargeError, match="4"):
        store.get(KEY, max_bytes=4)


@pytest.mark.parametrize(
    ("start", "length"), [(0, 10), (0, 1), (9, 1), (3, 4), (4, 0)], ids=["all", "first", "last", "middle", "none"]
)
def test_get_range_returns_exactly_the_range(store: Store, start: int, length: int) -> None:
    store.put(KEY, b"0123456789")

    assert store.get_range(KEY, start, length) == b"0123456789"[start : start + length]


@pytest.mark.parametrize(("start", "length"), [(0, 11), (8, 3), (10, 1), (50, 5)])
def test_a_range_beyond_the_end_is_an_error_not_a_short_answer(store: Store, start: int, length: int) -> None:
    store.put(KEY, b"0123456789")

    with pytest.raises(TruncatedObjectError):
        store.get_range(KEY, start, length)


NAMES = ["a-b", "a/b", "a.c", "a/c", "a0", "a", "b/.metadata", "b/x=1/y", "z"]


@pytest.fixture
def listed(store: Store) -> Store:
    # On a file system, a name is either a file or a folder.
    for name in NAMES[::-1]:
        store.put(f"{name}_", name.encode())
    return store


@pytest.mark.parametrize("after", ["", "a/b_", "a-b_", "a", "zz"])
def test_a_listing_is_complete_and_in_order(listed: Store, after: str) -> None:
    for prefix in ("", "a", "a/", "a/b", "b", "b/", "b/x", "nothing", "z_", "z_/"):
        expected = sorted(f"{name}_" for name in NAMES if f"{name}_".startswith(prefix) and f"{name}_" > after)

        assert keys(listed, prefix, after=after) == expected


def test_a_listing_says_what_stat_says(listed: Store) -> None:
    for info in listed.list():
        assert listed.stat(info.key) == info


def test_a_listing_of_many_pages_is_complete(s3: tuple[Server, Driver]) -> None:
    server, driver = s3
    url, expected = server.many_pages

    assert keys(open_store(server.settings(url=url), driver=driver)) == expected


@pytest.mark.parametrize(
    "sizes",
    [[], [0], [5], [3 * MIB, 0, 1], [6 * MIB], [3 * MIB] * 10, [PART, PART]],
    ids=["no write", "an empty write", "small", "uneven", "two parts", "many writes", "whole parts"],
)
def test_an_upload_stores_all_that_was_written(store: Store, sizes: list[int]) -> None:
    written = [bytes([65 + i]) * size for i, size in enumerate(sizes)]

    with store.upload(KEY) as upload:
        for data in written:
            buffer = bytearray(data)
            upload.write(buffer)
            buffer[:] = bytes(len(buffer))  # the caller's buffer is free again
        assert store.stat(KEY) is None

    info = store.stat(KEY)
    assert info is not None
    assert info.size == sum(sizes)
    assert store.get_range(KEY, 0, info.size) == b"".join(written)


def begin_an_upload_and_fail(store: Store, size: int) -> None:
    with store.upload(KEY) as upload:
        upload.write(bytes(size))
        raise KeyboardInterrupt


@pytest.mark.parametrize("size", [5, 7 * PART], ids=["small", "in parts"])
def test_an_aborted_upload_leaves_nothing(store: Store, size: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        begin_an_upload_and_fail(store, size)

    assert store.stat(KEY) is None
    assert keys(store) == []


def test_an_aborted_upload_leaves_an_older_object_alone(store: Store) -> None:
    store.put(KEY, b"old")

    with pytest.raises(KeyboardInterrupt):
        begin_an_upload_and_fail(store, 5)

    assert read(store, KEY) == b"old"


def test_abort_and_complete_may_be_called_early_and_again(store: Store) -> None:
    with store.upload("completed") as upload:
        upload.write(b"data")
        upload.complete()
        upload.abort()
    with store.upload("aborted") as upload:
        upload.write(b"data")
        upload.abort()
        upload.abort()

    assert keys(store) == ["completed"]


def test_delete_removes_what_exists_and_ignores_the_rest(store: Store) -> None:
    store.put("a", b"")
    store.put("b/c", b"")
    store.put("b/d", b"")

    # More than one request can carry.
    store.delete(["b/c", "missing", *(f"missing/{i}" for i in range(1000)), "a"])
    store.delete([])

    assert keys(store) == ["b/d"]


def test_the_probe_finds_no_fault_and_leaves_nothing(store: Store) -> None:
    probe(store)

    assert keys(store) == []
