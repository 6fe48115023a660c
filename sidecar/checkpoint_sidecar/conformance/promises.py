"""The promises that a store is checked for: the contract of ``store.base``, as far as a store can break it."""

from __future__ import annotations

import datetime as dt
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec

from checkpoint_sidecar.conformance.suite import OPERATION, USE_ANOTHER, Check, Trial
from checkpoint_sidecar.core.errors import (
    NoConditionalWriteError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreError,
    TruncatedObjectError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.store.base import RestsOnFilesystem, Store, Upload
from checkpoint_sidecar.store.common import parts
from checkpoint_sidecar.store.common.ranges import read_range

MANY_KEYS = 1101
"""More than a page of a listing holds, and more than one request deletes."""

Arguments = ParamSpec("Arguments")

_CREATORS = 16
RACES = 2
_OVERWRITES = 10
_CLOCK_TOLERANCE = dt.timedelta(minutes=1)
_MAX_BYTES = 1024 * 1024

# Every character that ``core.layout`` uses, and neighbours that a store might order by folder instead of by key.
_NAMES = ("a-b_", "a/b_", "a.c_", "a/c_", "a0_", "a_", "b/.metadata", "b/x=1/y", f"_long/{'n' * 127}", "Z_", "z_")

_LISTINGS = (
    *((prefix, "") for prefix in ("", "a", "a/", "a/b", "b/", "b/x", "nothing", "z_", "z_/")),
    *(("", after) for after in ("a", "a-b_", "a/b_", "b/.metadata", "zz")),
    ("a", "a-b_"),
    ("a/", "a/b_"),
)


def _read(store: Store, key: str) -> bytes:
    return store.get(key, max_bytes=_MAX_BYTES).data


def _listed(store: Store, prefix: str, after: str = "") -> list[str]:
    return [info.key for info in store.list(prefix, after=after)]


def _raises(
    kind: type[StoreError],
    request: Callable[Arguments, object],
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> bool:
    try:
        request(*arguments, **options)
    except kind:
        return True
    return False


def _written_is_read_back(trial: Trial) -> None:
    for name, write in (("put", trial.store.put), ("created", trial.store.put_if_absent)):
        for size in (0, 1, 300_000):
            key, data = trial.key(f"{name}-{size}"), secrets.token_bytes(size)
            write(key, data)
            stored, seen = trial.store.get(key, max_bytes=_MAX_BYTES), trial.store.stat(key)
            trial.expect(stored.data == data, f"{size} bytes were written and other bytes were read")
            trial.expect(
                stored.info == seen and (stored.info.key, stored.info.size) == (key, size),
                f"an object of {size} bytes is described as {stored.info} and as {seen}",
            )


def replaced(store: Store, key: str) -> NoConditionalWriteError:
    """The error about a create that replaced an object."""
    cause = "creating an object that exists replaced it"
    hint = "Use a store that honors If-None-Match on PUT."
    if isinstance(store, RestsOnFilesystem):
        cause = f"{store.filesystem_name} has no atomic exclusive create: {cause}"
        hint = USE_ANOTHER
    return NoConditionalWriteError(OPERATION, f"{store.url}/{key}", cause, hint)


def _created_once(trial: Trial) -> None:
    key = trial.key("created")
    trial.store.put_if_absent(key, b"first")
    refused = _raises(ObjectExistsError, trial.store.put_if_absent, key, b"second")
    held = _read(trial.store, key)
    if not refused or held == b"second":
        raise replaced(trial.store, key)
    trial.expect(held == b"first", "another object was read than the one that was created")


def _taken_by_any_write(trial: Trial) -> None:
    put, uploaded = trial.key("put"), trial.key("uploaded")
    trial.store.put(put, b"first")
    parts.write_object(trial.store, uploaded, b"first")
    for key in (put, uploaded):
        refused = _raises(ObjectExistsError, trial.store.put_if_absent, key, b"second")
        trial.expect(refused and _read(trial.store, key) == b"first", f"creating {key} replaced it")


def _created_again(trial: Trial) -> None:
    key = trial.key("created")
    trial.store.put_if_absent(key, b"first")
    trial.store.delete([key])
    trial.store.put_if_absent(key, b"second")
    trial.expect(_read(trial.other, key) == b"second", "the deleted object is read")


def _one_creator_wins(trial: Trial) -> None:
    for race in range(RACES):
        key = trial.key(f"race-{race}")
        errors = _race(trial, key)
        winners = [writer for writer, error in enumerate(errors) if error is None]
        undecided = [writer for writer, error in enumerate(errors) if isinstance(error, UnknownOutcomeError)]
        if len(winners) > 1 and isinstance(trial.store, RestsOnFilesystem):
            raise replaced(trial.store, key)
        trial.expect(len(winners) <= 1, f"{len(winners)} of {_CREATORS} creates succeeded")
        trial.expect(trial.store.stat(key) is not None, f"none of {_CREATORS} has created the object")
        # S3 may answer "conflict" to all that it has not refused; then the object names the winner.
        trial.expect(int(_read(trial.store, key)) in (winners or undecided), "the object is not the winner's")


def _race(trial: Trial, key: str) -> list[StoreError | None]:
    """What became of creating one key at once, by number of the creator, which is what each one writes."""
    together = threading.Barrier(_CREATORS)

    def create(writer: int) -> StoreError | None:
        store = trial.store if writer % 2 else trial.other
        together.wait()
        try:
            store.put_if_absent(key, str(writer).encode())
        except (ObjectExistsError, UnknownOutcomeError) as lost:
            return lost
        return None

    with ThreadPoolExecutor(_CREATORS) as pool:
        return list(pool.map(create, range(_CREATORS)))


def _listed_at_once(trial: Trial) -> None:
    key = trial.key("listed")
    trial.store.put(key, b"data")
    trial.expect(_listed(trial.store, key) == [key], "a listing lacks an object just written")


def _seen_by_others_at_once(trial: Trial) -> None:
    for name in ("put", "created", "uploaded"):
        key = trial.key(name)
        # Asked before, so that an answer kept anywhere on the way shows.
        trial.expect(trial.other.stat(key) is None and _listed(trial.other, key) == [], "an unwritten object exists")
        if name == "uploaded":
            parts.write_object(trial.store, key, b"data")
        else:
            write = trial.store.put if name == "put" else trial.store.put_if_absent
            write(key, b"data")
        trial.expect(trial.other.stat(key) is not None, f"another client does not find the object ({name})")
        trial.expect(_listed(trial.other, key) == [key], f"another client's listing lacks the object ({name})")
        trial.expect(_read(trial.other, key) == b"data", f"another client reads other bytes ({name})")
        trial.store.delete([key])
        trial.expect(trial.other.stat(key) is None, f"another client still sees a deleted object ({name})")
        trial.expect(_listed(trial.other, key) == [], f"another client still lists a deleted object ({name})")


def _overwritten_whole(trial: Trial) -> None:
    key = trial.key("overwritten")
    versions = [bytes([65 + number]) * (100_000 - 1000 * number) for number in range(_OVERWRITES)]
    trial.store.put(key, versions[0])

    def overwrite() -> None:
        for version in versions[1:]:
            trial.store.put(key, version)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(overwrite)
        while not writing.done():
            try:
                read = _read(trial.other, key)
            except ObjectNotFoundError:
                trial.expect(False, "the object was missing while it was overwritten")
            else:
                trial.expect(read in versions, "a mixture of two versions was read")
        writing.result()
    trial.expect(_read(trial.other, key) == versions[-1], "not the newest version is read")


def _missing_is_told(trial: Trial) -> None:
    trial.store.put(trial.key("folder/object"), b"data")
    for name in ("missing", "folder"):
        key = trial.key(name)
        trial.expect(trial.store.stat(key) is None, f"the object {key} does not exist, and it is described")
        read = not _raises(ObjectNotFoundError, trial.store.get, key, max_bytes=10)
        read = read or not _raises(ObjectNotFoundError, read_range, trial.store, key, 0, 1)
        trial.expect(not read, f"the object {key} does not exist, and it is read")


def _large_is_refused(trial: Trial) -> None:
    key = trial.key("large")
    trial.store.put(key, b"12345")
    trial.expect(trial.store.get(key, max_bytes=5).data == b"12345", "other bytes were read")
    refused = _raises(ObjectTooLargeError, trial.store.get, key, max_bytes=4)
    trial.expect(refused, "an object above the limit was read")


def _ranges_are_exact(trial: Trial) -> None:
    key, data = trial.key("ranges"), secrets.token_bytes(1000)
    trial.store.put(key, data)
    for start, length in ((0, 1000), (0, 1), (999, 1), (300, 400), (400, 0)):
        read = read_range(trial.store, key, start, length)
        trial.expect(read == data[start : start + length], f"a read of {length} bytes at {start} returns others")
    for start, length in ((0, 1001), (900, 101), (1000, 1), (5000, 5)):
        short = _raises(TruncatedObjectError, read_range, trial.store, key, start, length)
        trial.expect(short, f"a read of {length} bytes at {start} of 1000 is not an error")
    buffers = [bytearray(length) for length in (3, 0, 400, 1)]
    trial.store.read_into(key, 100, [memoryview(buffer) for buffer in buffers])
    trial.expect(b"".join(buffers) == data[100:504], "a read into several buffers returns other bytes")


def _keys_are_kept(trial: Trial) -> None:
    for name in reversed(_NAMES):
        trial.store.put(trial.key(name), name.encode())
    for name in _NAMES:
        trial.expect(_read(trial.store, f"{trial.folder}{name}") == name.encode(), f"{name} holds another object")
    for prefix, after in _LISTINGS:
        wanted = sorted(name for name in _NAMES if name.startswith(prefix) and name > after)
        found = _listed(trial.store, f"{trial.folder}{prefix}", after=f"{trial.folder}{after}")
        trial.expect(
            found == [f"{trial.folder}{name}" for name in wanted],
            f"the listing of {prefix!r} after {after!r} is {found}",
        )
    for info in trial.store.list(trial.folder):
        trial.expect(trial.store.stat(info.key) == info, f"{info.key} is listed with another size or date than it has")


def _pages_are_complete(trial: Trial) -> None:
    keys = [trial.key(f"{number:020d}.json") for number in range(MANY_KEYS)]
    with ThreadPoolExecutor(_CREATORS) as pool:
        list(pool.map(lambda key: trial.store.put(key, b""), keys))
    found = _listed(trial.store, trial.folder)
    trial.expect(found == keys, f"of {MANY_KEYS} keys {len(found)} are listed")
    trial.store.delete(keys)
    left = _listed(trial.store, trial.folder)
    trial.expect(left == [], f"of {MANY_KEYS} deleted objects {len(left)} are left")


def _uploaded_whole(trial: Trial) -> None:
    part = parts.PART_BYTES
    for name, size in (("nothing", 0), ("small", 5), ("one part", part), ("parts", 2 * part), ("rest", 2 * part + 5)):
        key, data = trial.key(name), memoryview(secrets.token_bytes(size))
        with trial.store.upload(key, size) as upload:
            _write_parts(upload, data)
            trial.expect(trial.other.stat(key) is None, "an object is visible before its upload is complete")
        info = trial.other.stat(key)
        trial.expect(info is not None and info.size == size, f"{size} bytes were uploaded, {info} is there")
        for start in range(0, size, part):
            read = read_range(trial.other, key, start, min(part, size - start))
            trial.expect(read == data[start : start + part], f"other bytes than the uploaded ones are read at {start}")


def _write_parts(upload: Upload, data: memoryview) -> None:
    """At once and the last one first, each from three buffers."""
    starts = range(0, data.nbytes, upload.part_bytes)

    def write(index: int) -> None:
        part = data[starts[index] :][: upload.part_bytes]
        upload.write_part(index, [part[:1], part[1:1000], part[1000:]])

    with ThreadPoolExecutor(max(1, len(starts))) as pool:
        list(pool.map(write, reversed(range(len(starts)))))


def _aborted_leaves_nothing(trial: Trial) -> None:
    for name, size in (("small", 5), ("parts", 2 * parts.PART_BYTES)):
        for older in (b"", b"older"):
            key = trial.key(f"{name}-over-{len(older)}")
            if older:
                trial.store.put(key, older)
            with trial.store.upload(key, size) as upload:
                _write_parts(upload, memoryview(bytes(size)))
                upload.abort()
            if older:
                trial.expect(_read(trial.other, key) == older, "an aborted upload changed the object")
            else:
                trial.expect(trial.other.stat(key) is None, "an aborted upload left an object")
                trial.expect(_listed(trial.other, key) == [], "an aborted upload is listed")


def _deleted_completely(trial: Trial) -> None:
    keys = [trial.key(name) for name in ("a", "b/c", "b/d")]
    for key in keys:
        trial.store.put(key, b"data")
    trial.store.delete([keys[0], trial.key("missing"), keys[1]])
    trial.expect(_listed(trial.store, trial.folder) == [keys[2]], "not exactly the deleted objects are gone")
    trial.store.delete(keys)
    trial.store.delete([])
    trial.expect(_listed(trial.store, trial.folder) == [], "deleted objects are listed")


def _clock_is_close(trial: Trial) -> None:
    key = trial.key("dated")
    before = dt.datetime.now(dt.UTC)
    trial.store.put(key, b"")
    after = dt.datetime.now(dt.UTC)
    modified = trial.store.get(key, max_bytes=0).info.modified
    trial.expect(
        before - _CLOCK_TOLERANCE <= modified <= after + _CLOCK_TOLERANCE,
        f"the store says {modified:%Y-%m-%d %H:%M:%S} when it is {after:%Y-%m-%d %H:%M:%S} here (UTC)",
    )


CHECKS: tuple[Check, ...] = (
    Check(
        "what is written is read back, byte for byte",
        "Nothing else can work without it.",
        _written_is_read_back,
    ),
    Check(
        "a created object is never replaced by a second create",
        "A commit is the creation of the next entry of the run's log: the second writer would erase the first one's.",
        _created_once,
        probed="Always",
    ),
    Check(
        f"of {_CREATORS} concurrent creates exactly one wins",
        "Two pods that commit at once would both believe that they succeeded.",
        _one_creator_wins,
        probed="OnFilesystems",
    ),
    Check(
        "a create is refused whatever wrote the object before",
        "An object that was put or uploaded in parts would be replaced.",
        _taken_by_any_write,
    ),
    Check(
        "a deleted object can be created again",
        "The command and the operator probe the store repeatedly.",
        _created_again,
    ),
    Check(
        "a listing shows an object right after it was written",
        "A restart would not see the newest entries of the log at once; the operator would decide by an old state.",
        _listed_at_once,
        probed="Always",
    ),
    Check(
        "other clients see writes and deletions at once",
        "The pod that takes over would restore an older snapshot than was committed.",
        _seen_by_others_at_once,
    ),
    Check(
        "an overwritten object is read whole, the old one or the new one",
        "The heartbeat is overwritten repeatedly; a reader would see half of it.",
        _overwritten_whole,
        probed="OnFilesystems",
    ),
    Check(
        "a missing object is reported as missing, not as an error",
        "A failing store would look like an empty one, and training would start at step 0.",
        _missing_is_told,
    ),
    Check(
        "an object above the limit is refused",
        "A hostile or damaged object would exhaust the memory of the operator.",
        _large_is_refused,
    ),
    Check(
        "ranged reads are exact, and an error beyond the end",
        "Tensors are read by range; a short answer would leave a part of a tensor unchanged.",
        _ranges_are_exact,
    ),
    Check(
        "keys keep their characters and are listed in order",
        "Entries and files would be missed or confused.",
        _keys_are_kept,
    ),
    Check(
        f"{MANY_KEYS:,} objects are listed and deleted completely",
        "Long runs have logs of more than one page; an object that is not listed would be taken for missing.",
        _pages_are_complete,
    ),
    Check(
        "an upload in parts stores all that was written, and shows nothing before",
        "Tensors are uploaded in parts.",
        _uploaded_whole,
    ),
    Check(
        "an aborted upload leaves nothing, and an older object as it was",
        "Half a file would be mistaken for a complete one.",
        _aborted_leaves_nothing,
    ),
    Check(
        "deleting is complete, and no error for what is gone",
        "Purging would stop half-way, or remove the manifest of files that still exist.",
        _deleted_completely,
    ),
    Check(
        "the store's clock is close to this machine's",
        "Stores refuse requests when the clocks differ too much, and grace periods are measured on the store's clock.",
        _clock_is_close,
    ),
)
"""All of them, the most basic one first."""


def probed(store: Store) -> tuple[Check, ...]:
    """The checks that a run makes before it trusts its store."""
    wanted = ("Always", "OnFilesystems") if isinstance(store, RestsOnFilesystem) else ("Always",)
    return tuple(check for check in CHECKS if check.probed in wanted)
