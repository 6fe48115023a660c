"""Files that did not change are copied by the store, and no others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crc32c
import pytest

from checkpoint_sidecar import FileSnapshots
from checkpoint_sidecar.core.log import SnapshotVerified
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer as module
from training.checkpointer_runs import NO_SCHEDULE, RunStorage, Watched
from training.folder_trees import tree

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SIZE = 20_000_000


@dataclass
class Seen:
    """The steps whose files were sent, and those whose files were copied."""

    sent: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    vouches: bool = True


class Copying(Watched):
    """A store that copies by itself and says the checksums of the copies, like S3 on AWS."""

    def __init__(self, store: Store, seen: Seen) -> None:
        super().__init__(store, lambda key: seen.sent.append(key.split("/")[0]) if key.endswith(".files") else None)
        self._seen = seen

    def can_compose_from(self, source: Store) -> bool:
        return source is self

    @contextmanager
    def compose(self, key: str, source: Store, part_sizes: Sequence[int]) -> Iterator[Any]:
        parts: dict[int, bytes] = {}

        def copy_part(index: int, source_key: str, start: int) -> None:
            buffer = bytearray(part_sizes[index])
            source.read_into(source_key, start, [memoryview(buffer)])
            parts[index] = bytes(buffer)

        def part_checksum(index: int) -> int | None:
            return crc32c.crc32c(parts[index]) if self._seen.vouches else None

        self._seen.copied.append(key.split("/")[0])
        yield SimpleNamespace(copy_part=copy_part, part_checksum=part_checksum)
        self._store.put(key, b"".join(parts[index] for index in sorted(parts)))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    monkeypatch.setattr(module, "open_store", lambda settings: Copying(open_store(settings), found))
    return found


def changes_nothing(_: Path) -> None:
    """The trainer left the file as it was."""


def rewrites(place: Path) -> None:
    place.write_bytes(os.urandom(SIZE))


def writes_secretly(place: Path) -> None:
    """As a write through memory that the filesystem has not noticed: only the checksum tells."""
    times = place.stat()
    with place.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"changed")
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))


def saved(folder: Path, storage: RunStorage, *steps: int, change: Callable[[Path], None] = changes_nothing) -> None:
    with FileSnapshots(folder, storage.url, save=NO_SCHEDULE) as snapshots:
        snapshots.restore()
        large = folder / "base" / "large.bin"
        for step in steps:
            if large.exists():
                change(large)
            else:
                large.parent.mkdir(parents=True, exist_ok=True)
                large.write_bytes(os.urandom(SIZE))
            snapshots.save(step, wait=True)


def restored(folder: Path, storage: RunStorage) -> tuple[int, int]:
    with FileSnapshots(folder, storage.url) as snapshots:
        found = snapshots.restore()
    assert found is not None
    return found.step, len(found.skipped)


@pytest.mark.parametrize(("change", "copied"), [(changes_nothing, ["step-2"]), (rewrites, []), (writes_secretly, [])])
def test_unchanged_files_are_copied_and_no_others(
    storage: RunStorage, seen: Seen, tmp_path: Path, change: Callable[[Path], None], copied: list[str]
) -> None:
    folder = tmp_path / "checkpoints"
    saved(folder, storage, 1, 2, change=change)
    assert seen.copied == copied
    assert seen.sent == (["step-1"] if copied else ["step-1", "step-2"])
    before = tree(folder)
    # The copy does not need the original.
    storage.store.delete([info.key for info in storage.store.list("step-1/")])
    shutil.rmtree(folder)
    assert restored(folder, storage) == (2, 0)
    assert tree(folder) == before


def test_what_was_restored_is_not_sent_again(storage: RunStorage, seen: Seen, tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints", storage, 1)
    saved(tmp_path / "elsewhere", storage, 2)
    assert (seen.sent, seen.copied) == (["step-1"], ["step-2"])


def test_a_rotten_original_is_not_copied(storage: RunStorage, seen: Seen, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    saved(folder, storage, 1)
    with FileSnapshots(folder, storage.url, save=NO_SCHEDULE) as snapshots:
        snapshots.restore()
        storage.damage(1, "__0_0.files")
        snapshots.save(2, wait=True)
    assert seen.sent == ["step-1", "step-2"]
    assert restored(tmp_path / "elsewhere", storage) == (2, 0)


def test_a_snapshot_that_is_known_to_be_damaged_is_not_copied(storage: RunStorage, seen: Seen, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with FileSnapshots(folder, storage.url, save=NO_SCHEDULE) as snapshots:
        snapshots.restore()
        (folder / "large.bin").write_bytes(os.urandom(SIZE))
        snapshots.save(1, wait=True)
        identifier = storage.snapshot(1).id
        storage.append(SnapshotVerified(identifier, "Sizes", passed=False, evidence="SizeMismatch"))
        snapshots._checkpointer._led.log.refresh()
        snapshots.save(2, wait=True)
    assert (seen.sent, seen.copied) == (["step-1", "step-2"], [])


def test_a_store_that_does_not_say_what_it_copied_is_asked_once(
    storage: RunStorage, seen: Seen, tmp_path: Path
) -> None:
    seen.vouches = False
    saved(tmp_path / "checkpoints", storage, 1, 2, 3)
    assert (seen.sent, seen.copied) == (["step-1", "step-2", "step-3"], ["step-2"])
    assert restored(tmp_path / "elsewhere", storage) == (3, 0)
