"""A copy is a run of its own: committed, verified, readable by everything, and never half there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crc32c
import pytest

from checkpoint_sidecar import ChangeRefusedError, CorruptSnapshotError, RunManagedError
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import RunConfigured
from checkpoint_sidecar.core.policy import Policy
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.engine import server_copy
from checkpoint_sidecar.engine.upload import upload_files
from checkpoint_sidecar.manage import copying
from checkpoint_sidecar.manage.copying import CopySettings, copy_run, plan_copy
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.local.adapter import LocalStore
from checkpoint_sidecar.store.opening import open_store
from doubles.counting import CountingStore
from doubles.memory import MemoryStore
from localcluster.objectstore import ObjectStore
from support.s3servers import Server
from support.trainers import Trainer


def trained(store: Store, *steps: int) -> tuple[Trainer, StoredRun]:
    trainer = Trainer(store).start()
    for step in steps:
        trainer.commit(step, metrics={"loss": f"0.{step}"})
    return trainer, StoredRun(store)


def copied(source: StoredRun, target: Store, selector: str | int = "", **settings: Any) -> list[int]:
    copies = copy_run(source, StoredRun(target), selector, settings=CopySettings(**settings))
    return [snapshot.step for snapshot in copies]


def test_a_copy_is_a_committed_verified_run_of_its_own(bucket: Store, tmp_path: Path) -> None:
    trainer, source = trained(bucket, 100, 200)
    trainer.start().commit(300, metrics={"loss": "0.3"})
    target = LocalStore(StoreSettings(tmp_path.as_uri()))

    assert copied(source, target) == [100, 200, 300]

    copy = StoredRun(target)
    assert [(s.step, s.verified, dict(s.commit.metrics)) for s in copy.snapshots()] == [
        (s.step, "Checksums", dict(s.commit.metrics)) for s in source.snapshots()
    ]
    assert copy.state.identity != source.state.identity
    assert all(copy.verify(each, checksums=True).passed for each in copy.snapshots())
    for old, new in zip(source.snapshots(), copy.snapshots(), strict=True):
        for name in ("__0_0.distcp", "__1_0.distcp", layout.METADATA_NAME):
            data = bucket.get(f"{old.commit.path}/{name}", max_bytes=1000).data
            assert target.get(f"{new.commit.path}/{name}", max_bytes=1000).data == data
        assert target.stat(layout.pointer_key(new.step)) is not None
    # Training continues in the copy as in any run.
    assert copy.owner is not None
    assert Trainer(target, copy.owner).start().run.attempts[2].restored == copy.find(300).id


def test_one_snapshot_is_copied_and_further_ones_are_added_later() -> None:
    trainer, source = trained(MemoryStore(), 100, 200)
    target = MemoryStore()
    assert copied(source, target, 200) == [200]
    assert copied(source, target, 200) == []
    trainer.commit(300)
    assert [each.step for each in plan_copy(source, StoredRun(target))] == [100, 300]
    assert copied(source, target) == [100, 300]
    assert copied(source, target) == []
    assert StoredRun(target).latest is not None


def test_what_retention_or_a_rollback_took_away_is_not_copied() -> None:
    trainer, source = trained(MemoryStore(), 100, 200, 300)
    source.remove(100)
    source.rollback(200)
    trainer.start().commit(250)
    target = MemoryStore()
    assert copied(source, target) == [200, 250]


class StopsError(Exception):
    """Stands for Ctrl-C, a kill or a store that fails."""


@pytest.mark.parametrize("pieces", range(6))
def test_an_interrupted_copy_commits_nothing_half_and_continues(pieces: int) -> None:
    _, source = trained(MemoryStore(), 100, 200)
    target = MemoryStore()
    seen: list[int] = []

    def stop(count: int) -> None:
        if len(seen) == pieces:
            raise StopsError
        seen.append(count)

    with pytest.raises(StopsError):
        copied(source, target, progress=stop)
    there = StoredRun(target)
    assert [each.step for each in there.snapshots()] == ([100] if pieces >= 3 else [])
    assert all(there.verify(each, checksums=True).passed for each in there.snapshots())
    assert copied(source, target) == [100, 200][len(there.snapshots()) :]
    there.refresh()
    assert [each.step for each in there.snapshots()] == [100, 200]
    assert {key.key.partition("/")[0] for key in target.list("step-")} == {"step-100", "step-200"}


def test_files_that_an_interrupted_copy_stored_are_compared_and_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = trained(MemoryStore(), 100)
    target = CountingStore(MemoryStore())
    with monkeypatch.context() as patch:
        patch.setattr("checkpoint_sidecar.manage.copying.write_object", interrupted)
        with pytest.raises(StopsError):
            copied(source, target)
    read = CountingStore(source.store)
    assert copied(StoredRun(read), target) == [100]
    assert not any(key.endswith(".distcp") for key in read.read), "their bytes were read from the copy"


def interrupted(*_: Any) -> None:
    raise StopsError


def test_damage_is_not_copied_and_a_damaged_file_of_a_half_made_copy_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    _, source = trained(store, 100, 200)
    key = f"{source.find(200).commit.path}/__0_0.distcp"
    store.corrupt(key, b"\1" + bytes(699))
    target = MemoryStore()
    with pytest.raises(CorruptSnapshotError, match=r"__0_0\.distcp"):
        copied(source, target)
    assert [each.step for each in StoredRun(target).snapshots(all=True)] == [100]

    store.corrupt(key, bytes(700))
    with monkeypatch.context() as patch:
        patch.setattr("checkpoint_sidecar.manage.copying.write_object", interrupted)
        with pytest.raises(StopsError):
            copied(source, target)
    (half,) = [info.key for info in target.list("step-200/") if info.key.endswith("__0_0.distcp")]
    target.corrupt(half, b"\1" + bytes(699))
    assert copied(source, target) == [200]
    assert StoredRun(target).verify(200, checksums=True).passed


def test_a_prefix_with_another_run_is_left_alone() -> None:
    _, source = trained(MemoryStore(), 100)
    other = MemoryStore()
    trained(other, 500)
    with pytest.raises(ChangeRefusedError, match="another run is there"):
        copied(source, other)
    assert [each.step for each in StoredRun(other).snapshots()] == [500]
    with pytest.raises(ChangeRefusedError, match="the same run"):
        copied(source, source.store)
    target = MemoryStore()
    copied(source, target)
    owner = StoredRun(target).owner
    assert owner is not None
    Trainer(target, owner).start()
    with pytest.raises(ChangeRefusedError, match="training has begun in the copy"):
        copied(source, target)


def test_a_prefix_that_an_operator_manages_takes_a_copy_only_on_request() -> None:
    _, source = trained(MemoryStore(), 100)
    target = MemoryStore()
    log = RunLog(target, writer="operator")
    Trainer(target)
    log.append(lambda _: RunConfigured("uid-of-a-checkpoint", 1, Policy()))
    with pytest.raises(RunManagedError):
        copied(source, target)
    assert copied(source, target, without_operator=True) == [100]


def test_a_snapshot_that_was_deleted_in_the_copy_is_not_copied_again() -> None:
    _, source = trained(MemoryStore(), 100, 200)
    target = MemoryStore()
    copied(source, target)
    StoredRun(target).remove(100)
    assert copied(source, target) == []
    assert StoredRun(target).find(100).state is SnapshotState.PURGED


@pytest.mark.store
def test_one_service_copies_by_itself_and_its_checksums_are_compared(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_copy, "LEAST_PART_BYTES", 1)
    server = Server("seaweedfs", object_store.endpoint, object_store.access_key, object_store.secret_key)
    bucket = server.shared_bucket
    source_store, target_store = (open_store(server.settings(bucket)) for _ in range(2))
    _, source = trained(source_store, 100)
    asked: list[str] = []
    copied_by_store = server_copy.ServerCopy.copied

    def noted(self: server_copy.ServerCopy, file: Any, *folders: str) -> bool:
        done = copied_by_store(self, file, *folders)
        asked.append(f"{file.name} {done}")
        return done

    monkeypatch.setattr(server_copy.ServerCopy, "copied", noted)
    assert copied(source, target_store) == [100]
    assert StoredRun(target_store).verify(100, checksums=True).passed
    assert len(asked) == 3
    assert server.open_uploads(target_store.url) == []


class Composed(MemoryStore):
    """A store that copies by itself, and says of each part what ``checksum`` makes of its bytes."""

    def __init__(self, checksum: Callable[[bytes], int | None]) -> None:
        super().__init__()
        self.checksum, self.asked = checksum, 0

    def can_compose_from(self, source: Store) -> bool:
        return isinstance(source, MemoryStore)

    @contextlib.contextmanager
    def compose(self, key: str, source: Store, part_sizes: Sequence[int]) -> Iterator[Any]:
        parts: dict[int, bytes] = {}

        def copy_part(index: int, source_key: str, start: int) -> None:
            self.asked += 1
            buffer = bytearray(part_sizes[index])
            source.read_into(source_key, start, [memoryview(buffer)])
            parts[index] = bytes(buffer)

        yield SimpleNamespace(copy_part=copy_part, part_checksum=lambda index: self.checksum(parts[index]))
        self.put(key, b"".join(parts[index] for index in sorted(parts)))


@pytest.mark.parametrize(
    ("checksum", "by_store"), [(crc32c.crc32c, True), (lambda _: None, False)], ids=["reported", "not reported"]
)
def test_what_the_store_does_not_vouch_for_is_sent(
    checksum: Callable[[bytes], int | None], by_store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_copy, "LEAST_PART_BYTES", 1)
    monkeypatch.setattr(server_copy, "COPIED_PART_BYTES", 256)
    _, source = trained(MemoryStore(), 100)
    target = Composed(checksum)
    sent: list[str] = []
    send = upload_files

    def noted(store: Store, folder: str, plans: Any, **settings: Any) -> Any:
        sent.extend(plan.name for plan in plans)
        return send(store, folder, plans, **settings)

    monkeypatch.setattr(copying, "upload_files", noted)
    assert copied(source, target) == [100]
    assert ("__0_0.distcp" in sent) is not by_store
    # 8, 700 and 300 bytes in parts of 256; the first file was enough to see that it reports no checksum.
    assert target.asked == (1 + 3 + 2 if by_store else 1)
    assert StoredRun(target).verify(100, checksums=True).passed


def test_a_copy_by_the_store_that_differs_is_not_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_copy, "LEAST_PART_BYTES", 1)
    _, source = trained(MemoryStore(), 100)
    target = Composed(lambda data: crc32c.crc32c(data) ^ 1)
    with pytest.raises(CorruptSnapshotError, match="CRC32C"):
        copied(source, target)
    assert not list(target.list("step-"))
    assert StoredRun(target).snapshots(all=True) == ()
