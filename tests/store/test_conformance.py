"""Every store keeps every promise, and a store that breaks one is found out.

The stores are the double in memory, local files and two S3 servers through two adapters, and those whose URLs are in
``CHECKPOINT_CONFORMANCE_URLS``.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest

from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.conformance.promises import CHECKS
from checkpoint_sidecar.conformance.suite import BrokenPromiseError, Check, PromiseVerdict, Trial, examine
from checkpoint_sidecar.core.errors import AccessDeniedError, NoConditionalWriteError, ObjectExistsError, StoreError
from checkpoint_sidecar.store.base import Buffer, ObjectInfo, StoredObject, Upload
from doubles.memory import MemoryStore, utc_now

every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.promise)


@every_check
def test_the_store_keeps_its_promise(check: Check, trial: Trial, request: pytest.FixtureRequest) -> None:
    if "moto" in request.node.name and "concurrent" in check.promise:
        pytest.skip("moto looks and then writes, without a lock between")
    if "moto" in request.node.name and "1,101" in check.promise:
        pytest.skip("moto takes long; SeaweedFS shows it through the same adapters")
    check.run(trial)

    trial.clean()
    assert list(trial.other.list(trial.folder)) == []


def test_the_probe_finds_no_fault_and_leaves_nothing(trial: Trial) -> None:
    probe(trial.store)

    assert list(trial.store.list("_probe/")) == []


def test_the_probe_is_part_of_the_suite() -> None:
    assert {check.promise for check in CHECKS if check.probed == "Always"} == {
        "a created object is never replaced by a second create",
        "a listing shows an object right after it was written",
    }


class Scrambles(MemoryStore):
    def put(self, key: str, data: Buffer) -> None:
        super().put(key, bytes(data)[::-1])


class IgnoresTheCondition(MemoryStore):
    def put_if_absent(self, key: str, data: Buffer) -> None:
        self.put(key, data)


class LooksAndThenWrites(MemoryStore):
    def put_if_absent(self, key: str, data: Buffer) -> None:
        if self.stat(key):
            raise ObjectExistsError("create", key, "the key is taken")
        time.sleep(0.01)
        self.put(key, data)


class KnowsOnlyItsOwnCreates(MemoryStore):
    def put_if_absent(self, key: str, data: Buffer) -> None:
        if (key.endswith(("/put", "/uploaded"))) and self.stat(key):
            self.put(key, data)
        else:
            super().put_if_absent(key, data)


class RemembersDeletedKeys(MemoryStore):
    def put_if_absent(self, key: str, data: Buffer) -> None:
        if key in self.__dict__.setdefault("deleted", set()):
            raise ObjectExistsError("create", key, "the key is taken")
        super().put_if_absent(key, data)

    def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        self.__dict__.setdefault("deleted", set()).update(keys)
        super().delete(keys)


class ListsLate(MemoryStore):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        old = utc_now() - dt.timedelta(milliseconds=50)
        return (info for info in super().list(prefix, after=after) if info.modified < old)


class RemembersWhatIsMissing(MemoryStore):
    def stat(self, key: str) -> ObjectInfo | None:
        remembered: dict[str, ObjectInfo | None] = self.__dict__.setdefault("remembered", {})
        return remembered.setdefault(key, super().stat(key))


class WritesBitByBit(MemoryStore):
    def put(self, key: str, data: Buffer) -> None:
        super().put(key, bytes(data)[: len(data) // 2])
        time.sleep(0.002)
        super().put(key, data)


class FindsEverything(MemoryStore):
    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        if self.stat(key) is None:
            return StoredObject(ObjectInfo(key, 0, utc_now()), b"")
        return super().get(key, max_bytes=max_bytes)


class HasNoLimit(MemoryStore):
    def get(self, key: str, *, max_bytes: int) -> StoredObject:
        return super().get(key, max_bytes=max(max_bytes, 2**40))


class ReadsShort(MemoryStore):
    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
        exists = len(self._stored("read", key).data) - start
        super().read_into(key, start, [buffer[: max(exists, 0)] for buffer in buffers])


class ListsByFolder(MemoryStore):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return iter(sorted(super().list(prefix, after=after), key=lambda info: info.key.split("/")))


class ListsOnePage(MemoryStore):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return iter(list(super().list(prefix, after=after))[:1000])


class UploadsOnly(MemoryStore):
    """Uploads in another way than the contract says: ``upload_kind`` makes the writer."""

    upload_kind: Any

    def upload(self, key: str, size: int) -> AbstractContextManager[Upload]:
        upload: AbstractContextManager[Upload] = self.upload_kind(super().upload(key, size))
        return upload


class _Forwarding:
    def __init__(self, inner: AbstractContextManager[Upload]) -> None:
        self.inner = inner

    def __enter__(self) -> Any:
        self.upload = self.inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)

    @property
    def part_bytes(self) -> int:
        return self.upload.part_bytes

    def write_part(self, index: int, buffers: Sequence[Buffer]) -> None:
        self.upload.write_part(index, buffers)

    def abort(self) -> None:
        self.upload.abort()


class _LosesALaterPart(_Forwarding):
    def write_part(self, index: int, buffers: Sequence[Buffer]) -> None:
        super().write_part(index, [bytes(len(buffer)) for buffer in buffers] if index else buffers)


class _PublishesWhenAborted(_Forwarding):
    def abort(self) -> None:
        self.upload.complete()


class LosesParts(UploadsOnly):
    upload_kind = _LosesALaterPart


class KeepsAbortedUploads(UploadsOnly):
    upload_kind = _PublishesWhenAborted


class DeletesSome(MemoryStore):
    def delete(self, keys: Iterable[str]) -> None:
        super().delete(list(keys)[:2])


class LivesInThePast(MemoryStore):
    def __init__(self) -> None:
        super().__init__(clock=lambda: utc_now() - dt.timedelta(hours=1))


LIARS: dict[str, type[MemoryStore]] = dict(
    zip(
        (check.promise for check in CHECKS),
        (
            Scrambles,
            IgnoresTheCondition,
            LooksAndThenWrites,
            KnowsOnlyItsOwnCreates,
            RemembersDeletedKeys,
            ListsLate,
            RemembersWhatIsMissing,
            WritesBitByBit,
            FindsEverything,
            HasNoLimit,
            ReadsShort,
            ListsByFolder,
            ListsOnePage,
            LosesParts,
            KeepsAbortedUploads,
            DeletesSome,
            LivesInThePast,
        ),
        strict=True,
    )
)


@every_check
def test_a_store_that_breaks_the_promise_is_found_out(check: Check) -> None:
    store = LIARS[check.promise]()

    findings = {finding.check: finding for finding in examine(store, store, CHECKS)}

    assert findings[check].verdict is PromiseVerdict.BROKEN
    assert findings[check].detail


def test_a_store_in_order_is_found_to_keep_everything_and_left_empty() -> None:
    store = MemoryStore()

    assert {finding.verdict for finding in examine(store, store, CHECKS)} == {PromiseVerdict.KEPT}
    assert list(store.list()) == []


def test_the_probe_refuses_a_store_in_which_a_second_create_replaces() -> None:
    store = IgnoresTheCondition()

    with pytest.raises(NoConditionalWriteError, match="replaced"):
        probe(store)
    assert list(store.list()) == []


def test_trial_objects_that_others_delete_are_no_fault_of_the_store() -> None:
    class Tidied(MemoryStore):
        """A run is deleted while the store is tried out, with all trial objects under its prefix."""

        tidied = False

        def put(self, key: str, data: Buffer) -> None:
            super().put(key, data)
            if not self.tidied:
                self.tidied = True
                self.delete([info.key for info in super().list("_probe/")])

    store = Tidied()
    probe(store)
    assert store.tidied
    assert list(store.list()) == []


def test_the_probe_refuses_a_store_that_lists_late() -> None:
    with pytest.raises(BrokenPromiseError, match="listing lacks"):
        probe(ListsLate())


class Denies(MemoryStore):
    def put(self, key: str, _: Buffer) -> None:
        raise AccessDeniedError("write", key, "not allowed")


def test_a_store_that_cannot_be_asked_is_not_judged_and_asked_no_more() -> None:
    findings = list(examine(Denies(), Denies(), CHECKS))

    assert {finding.verdict for finding in findings} == {PromiseVerdict.UNANSWERED}
    assert "not allowed" in findings[0].detail
    assert all("first question" in finding.detail for finding in findings[1:])


class DeletesNothing(MemoryStore):
    def delete(self, keys: Iterable[str]) -> None:
        if list(keys):
            raise StoreError("delete", "an object", "the store is read-only")


def test_a_trial_that_cannot_be_removed_is_no_success() -> None:
    store = DeletesNothing()

    assert next(examine(store, store, CHECKS)).verdict is PromiseVerdict.UNANSWERED
    with pytest.raises(StoreError, match="read-only"):
        probe(store)
