"""The requests of a drop-in save: few, the same for any number of tensors, and each for a reason."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.distributed.checkpoint as dcp

from checkpoint_sidecar.training.dcp import dropin
from checkpoint_sidecar.training.dcp.dropin import CheckpointWriter
from doubles.counting import CountingStore
from doubles.memory import MemoryStore

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

APPEND = Counter(get=4, put_if_absent=1)
"""Check that the number is free and the log exists; write; check which entry has the number and that the log exists."""
FILES = Counter(upload=4)
""".distcp, .metadata, stock.metadata and manifest.json."""
SIZES = Counter(stat=3)
"""Requests for the sizes of all files but the manifest."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> CountingStore:
    counting = CountingStore(MemoryStore())
    monkeypatch.setattr(dropin, "open_store", lambda _: counting)
    return counting


def save(store: CountingStore, tensors: int) -> Counter[str]:
    before = Counter(store.requests)
    state = {f"parameter {number}": torch.zeros(3) for number in range(tensors)}
    dcp.save(state, storage_writer=CheckpointWriter("s3://bucket/checkpoint"), no_dist=True)
    return Counter(store.requests) - before


def times(count: int, requests: Counter[str]) -> Counter[str]:
    return Counter({verb: count * number for verb, number in requests.items()})


@pytest.mark.parametrize("tensors", [1, 1000])
def test_a_save_into_a_new_directory(store: CountingStore, tensors: int) -> None:
    opening = Counter(list=2)
    # Before the first entry there is none to look for, but the remains of a deleted log.
    claim = Counter(get=2, put_if_absent=1, list=1)
    # Identity, start, commit, verification.
    entries = times(4, APPEND)
    # The log before and after, and the manifest; the pointer, and the bytes that it is to have.
    pointer = Counter(get=4, stat=1, put_if_absent=1)
    asked = save(store, tensors)
    assert asked == opening + claim + entries + FILES + SIZES + pointer
    assert asked.total() == 39


def test_the_second_save_of_a_directory(store: CountingStore) -> None:
    save(store, 1)
    entries_read = store.requests["put_if_absent"] - 1  # one is the pointer
    opening = Counter(list=2, get=entries_read)
    claim = Counter(get=1)
    # Start, commit, verification, and that the checkpoint before is replaced.
    entries = times(4, APPEND)
    leftovers = Counter(list=1, get=1)
    # The log before and after, and the manifest; the pointer and the origin at its end, and the bytes that it gets.
    pointer = Counter(get=5, stat=1, put=1)
    assert save(store, 1) == opening + claim + entries + leftovers + FILES + SIZES + pointer


def test_the_third_save_of_a_directory_also_purges_the_first(store: CountingStore) -> None:
    save(store, 1)
    save(store, 1)
    entries_read = store.requests["put_if_absent"] - 1
    opening = Counter(list=2, get=entries_read)
    claim = Counter(get=1)
    # As in the second save, and that the purge has begun and ended.
    entries = times(6, APPEND)
    # What belongs to it, that no pointer shows it, and its files before its manifest.
    purge = Counter(get=4, stat=1, delete=2)
    leftovers = Counter(list=1, get=1)
    pointer = Counter(get=5, stat=1, put=1)
    assert save(store, 1) == opening + claim + entries + purge + leftovers + FILES + SIZES + pointer
