"""Sizes of a snapshot's files: one listing for many, and a request of its own for each file that the listing lacks."""

from __future__ import annotations

from collections import Counter

import pytest

from checkpoint_sidecar.core.errors import CorruptSnapshotError
from checkpoint_sidecar.core.manifest import File
from checkpoint_sidecar.engine.verify import check_sizes
from doubles.counting import CountingStore
from doubles.memory import MemoryStore

FOLDER = "step-1/0001-abcdefgh"


def saved(count: int) -> tuple[CountingStore, list[File]]:
    store = CountingStore(MemoryStore())
    files = [File(f"__{number}_0.distcp", number, 0, b"") for number in range(count)]
    for file in files:
        store.put(f"{FOLDER}/{file.name}", bytes(file.size))
    store.requests.clear()
    return store, files


def test_a_few_files_are_asked_for_one_by_one() -> None:
    store, files = saved(3)
    check_sizes(store, FOLDER, files)
    assert Counter(store.requests) == Counter(stat=3)


def test_a_thousand_files_take_one_listing() -> None:
    store, files = saved(1000)
    check_sizes(store, FOLDER, files)
    assert Counter(store.requests) == Counter(list=1)


def test_a_missing_one_among_many_is_named() -> None:
    store, files = saved(1000)
    store.delete([f"{FOLDER}/{files[500].name}"])
    with pytest.raises(CorruptSnapshotError, match=r"__500_0\.distcp") as caught:
        check_sizes(store, FOLDER, files)
    assert caught.value.evidence == "MissingObject"


def test_a_shorter_one_among_many_is_named_with_both_sizes() -> None:
    store, files = saved(1000)
    store.put(f"{FOLDER}/{files[500].name}", bytes(499))
    with pytest.raises(CorruptSnapshotError, match="it has 499 bytes, but 500 were committed"):
        check_sizes(store, FOLDER, files)


def test_a_file_that_a_listing_omits_is_not_taken_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    store, files = saved(1000)
    listed = list(store.list(f"{FOLDER}/"))
    monkeypatch.setattr(store, "list", lambda *_, **__: iter(listed[1:]))
    store.requests.clear()
    check_sizes(store, FOLDER, files)
    assert Counter(store.requests) == Counter(stat=1)
