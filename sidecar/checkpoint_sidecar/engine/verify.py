"""Compares a committed snapshot with the stored objects, without restoring it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.commits import shares_of
from checkpoint_sidecar.core.errors import CorruptSnapshotError, ObjectNotFoundError, ObjectTooLargeError
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.core.manifest import File, Manifest
from checkpoint_sidecar.core.policy import NOT_CHECKED, VerifyLevel
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.confirm import confirmed
from checkpoint_sidecar.engine.delivery import Want
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.read import Files, missing
from checkpoint_sidecar.engine.requests import REQUEST_BYTES, ByteRange
from checkpoint_sidecar.store.base import Store

_PARALLEL_REQUESTS = 8

_LITTLE_BYTES = 16 * 1024 * 1024
"""Maximum bytes that rank 0 reads after a restore to complete the verification of a snapshot."""


class VerificationPass:
    """The files that snapshots may share and that were intact when one pass over several snapshots has read them."""

    def __init__(self) -> None:
        self._intact: set[tuple[str, int, bytes]] = set()

    def has(self, file: File, folder: str) -> bool:
        return (file.key(folder), file.size, file.block_crc32c) in self._intact

    def add(self, file: File, folder: str) -> None:
        if layout.settled_place(file.name) is not None:
            self._intact.add((file.key(folder), file.size, file.block_crc32c))


def read_manifest(store: Store, commit: SnapshotCommitted) -> Manifest:
    """Read the manifest of a committed snapshot and check it against the commit.

    Raises:
        CorruptSnapshotError: It is missing or differs from the committed one.
        IncompatibleSnapshotError: A newer version wrote it.
        StoreError: The store failed; this says nothing about the snapshot.
    """
    key = layout.parse_save_folder(commit.path).manifest

    def read() -> Manifest:
        try:
            data = store.get(key, max_bytes=manifests.MAX_MANIFEST_BYTES).data
        except ObjectNotFoundError as error:
            raise missing(key) from error
        except ObjectTooLargeError as error:
            # A committed manifest never has that size.
            raise CorruptSnapshotError("read the manifest", key, error.cause, evidence="ManifestMismatch") from error
        manifest = manifests.decode(data, expected_digest=commit.manifest_digest, subject=key)
        if manifest.shares != shares_of(commit):
            # The log decides which files stay, so that this snapshot may lose some.
            cause = "it shares other files with other snapshots than its commit says"
            raise CorruptSnapshotError("read the manifest", key, cause, evidence="ManifestMismatch")
        return manifest

    return confirmed(store, read)


def read_file(
    store: Store,
    folder: str,
    manifest: Manifest,
    name: str,
    *,
    level: VerifyLevel,
    settings: EngineSettings,
    last: int | None = None,
) -> bytes:
    """Read a small file of a snapshot, such as ``.metadata``, or the end of it.

    Args:
        folder: ``SaveFolder.path``.
        level: How thoroughly to check it.
        last: Number of bytes to read at its end; by default, and if it has fewer, all of them.

    Raises:
        CorruptSnapshotError: It differs from what was committed, or the manifest does not list it.
        StoreError: The store failed; this says nothing about the snapshot.
    """
    file = manifest.file(name)
    if file is None:
        raise CorruptSnapshotError(
            "read the file",
            f"{folder}/{name}",
            "the manifest does not list it",
            evidence="ManifestMismatch",
        )
    check_sizes(store, folder, [file], level=level)
    data = bytearray(file.size if last is None else min(last, file.size))
    contents = Files(store, folder, manifest, settings=settings, compare=level == "Checksums")
    contents.read([Want(name, ByteRange(file.size - len(data), len(data)), memoryview(data))])
    return bytes(data)


def compare_rest(
    store: Store, folder: str, manifest: Manifest, compared: ComparedBytes, *, settings: EngineSettings
) -> None:
    """Compare the bytes that a restore did not read, if they are few: ends of archives, and torch's own metadata.

    Args:
        folder: ``SaveFolder.path``.
        compared: The bytes that were compared; complete afterwards, unless many were left.

    Raises:
        CorruptSnapshotError: Some of them differ from what was committed.
        StoreError: The store failed; this says nothing about the snapshot.
    """
    left = list(compared.left())
    if sum(span.length for _, span in left) <= _LITTLE_BYTES:
        wants = [Want(name, span, memoryview(bytearray(span.length))) for name, span in left]
        Files(store, folder, manifest, settings=settings, compared=compared).read(wants)


def verify_snapshot(
    store: Store,
    commit: SnapshotCommitted,
    *,
    level: VerifyLevel,
    connections: int = _PARALLEL_REQUESTS,
    before_read: Callable[[int], None] = lambda _: None,
    same_pass: VerificationPass | None = None,
) -> int:
    """Check every file of a snapshot.

    Args:
        level: How thoroughly to check.
        connections: Concurrent requests. Memory use is this times ``REQUEST_BYTES``, at least one block.
        before_read: Called with a number of bytes before they are read. It may wait, to slow down, or raise, to stop.
        same_pass: Remembers the shared files that were read, so that they are not read again for other snapshots.

    Returns:
        Total bytes of the checked files.

    Raises:
        CorruptSnapshotError: The first difference found.
        IncompatibleSnapshotError, StoreError: See ``read_manifest``.
    """
    manifest = read_manifest(store, commit)
    check_sizes(store, commit.path, manifest.files, level=level)
    if level == "Checksums":
        settings = EngineSettings(connections=connections)
        contents = Files(store, commit.path, manifest, settings=settings)
        # Whole blocks, so that none is read twice.
        step = max(REQUEST_BYTES * connections // manifest.block_bytes, 1) * manifest.block_bytes
        memory = memoryview(bytearray(min(step, max((file.size for file in manifest.files), default=0))))
        for file in manifest.files:
            if same_pass is not None and same_pass.has(file, commit.path):
                continue
            for start in range(0, file.size, step):
                span = ByteRange(start, min(step, file.size - start))
                before_read(span.length)
                contents.read([Want(file.name, span, memory[: span.length])])
            if same_pass is not None:
                same_pass.add(file, commit.path)
    return manifest.size


def check_sizes(store: Store, folder: str, files: Iterable[File], *, level: VerifyLevel = "Sizes") -> None:
    """Compare the sizes of some files of a save with the stored ones, and read no data.

    Many files are looked up in one listing of their folder; a file is asked for by itself where the listing differs.

    Args:
        folder: ``SaveFolder.path``.
        level: At ``None``, nothing is checked.

    Raises:
        CorruptSnapshotError: A file is missing or has another size.
        StoreError: The store failed.
    """
    if level == NOT_CHECKED:
        return
    left = list(files)
    counts = Counter(file.shared_in or folder for file in left)
    listed: dict[str, int] = {}
    for each, count in counts.items():
        if count > _PARALLEL_REQUESTS:
            listed.update((info.key, info.size) for info in store.list(f"{each}/"))
    left = [file for file in left if listed.get(file.key(folder)) != file.size]

    def check(file: File) -> None:
        key = file.key(folder)
        info = store.stat(key)
        if info is None:
            raise missing(key)
        if info.size != file.size:
            raise CorruptSnapshotError(
                "check the file",
                key,
                f"it has {info.size} bytes, but {file.size} were committed",
                evidence="SizeMismatch",
            )

    with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="stat") as pool:
        for _ in pool.map(lambda file: confirmed(store, functools.partial(check, file)), left):
            pass
