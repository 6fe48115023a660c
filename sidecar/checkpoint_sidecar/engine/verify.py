"""Comparing a committed snapshot with what is stored, without restoring it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import CorruptSnapshotError, ObjectNotFoundError, ObjectTooLargeError
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.core.manifest import File, Manifest
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.engine.read import REQUEST_BYTES, FileReader, Span, missing
from checkpoint_sidecar.store.base import Store

_PARALLEL_REQUESTS = 8


def read_manifest(store: Store, commit: SnapshotCommitted) -> Manifest:
    """The manifest of a committed snapshot, checked against the commit.

    Raises:
        CorruptSnapshotError: It is missing, or not the one that was committed.
        IncompatibleSnapshotError: A newer version wrote it.
        StoreError: The store failed, which says nothing about the snapshot.
    """
    key = layout.parse_save_folder(commit.path).manifest
    try:
        data = store.get(key, max_bytes=manifests.MAX_MANIFEST_BYTES).data
    except ObjectNotFoundError as error:
        raise missing(key) from error
    except ObjectTooLargeError as error:
        # No manifest of that size was ever committed.
        raise CorruptSnapshotError("read the manifest", key, error.cause, evidence="ManifestMismatch") from error
    return manifests.decode(data, expected_digest=commit.manifest_digest, subject=key)


def verify_snapshot(
    store: Store,
    commit: SnapshotCommitted,
    *,
    level: VerifyLevel,
    connections: int = _PARALLEL_REQUESTS,
    before_read: Callable[[int], None] = lambda _: None,
) -> int:
    """Check every file of a snapshot.

    Args:
        connections: Requests side by side. Twice this times ``REQUEST_BYTES`` are held in memory.
        before_read: Called with a number of bytes before they are read. It may wait, to read slowly, or raise, to end.

    Returns:
        Bytes of the files that were checked.

    Raises:
        CorruptSnapshotError: The first difference found.
        IncompatibleSnapshotError, StoreError: See ``read_manifest``.
    """
    manifest = read_manifest(store, commit)
    check_sizes(store, commit.path, manifest.files, level=level)
    if level == "Checksums":
        with ThreadPoolExecutor(connections, thread_name_prefix="verify") as pool:
            for file in manifest.files:
                reader = FileReader(
                    store, f"{commit.path}/{file.name}", file, pool=pool, block_bytes=manifest.block_bytes
                )
                step = max(REQUEST_BYTES * connections, manifest.block_bytes)
                for start in range(0, file.size, step):
                    span = Span(start, min(step, file.size - start))
                    before_read(span.length)
                    reader.read(span)
    return manifest.size


def check_sizes(store: Store, folder: str, files: Iterable[File], *, level: VerifyLevel = "Sizes") -> None:
    """Compare the sizes of some files of a save with the store's; one request each, no data is read.

    Args:
        folder: ``SaveFolder.path``.
        level: Nothing is checked at ``None``.

    Raises:
        CorruptSnapshotError: A file is missing or has another size.
        StoreError: The store failed.
    """
    if level == "None":
        return

    def check(file: File) -> None:
        key = f"{folder}/{file.name}"
        info = store.stat(key)
        if info is None:
            raise missing(key)
        if info.size != file.size:
            raise CorruptSnapshotError(
                "check a file of the snapshot",
                key,
                f"it has {info.size} bytes, {file.size} were committed",
                evidence="SizeMismatch",
            )

    with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="stat") as pool:
        for _ in pool.map(check, files):
            pass
