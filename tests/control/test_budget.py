"""What one pass may cost, whatever a store says."""

from __future__ import annotations

import threading

import pytest

from checkpoint_operator.fairness import budget
from checkpoint_operator.fairness.budget import MIB, Limits, MemoryPool, Meter, metered
from checkpoint_operator.gather.run_store import fault_from
from checkpoint_operator.model.observed import StoreFault
from checkpoint_operator.model.outcome import BudgetError
from checkpoint_sidecar.core.errors import ObjectTooLargeError
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import KeepsUnfinished
from checkpoint_sidecar.store.local.adapter import LocalStore
from doubles.memory import MemoryStore


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fault(call: object) -> StoreFault:
    with pytest.raises(BudgetError) as caught:
        call()  # type: ignore[operator]
    return fault_from(caught.value)


def test_after_its_time_a_pass_makes_no_request_and_the_next_one_does() -> None:
    clock = Clock()
    meter = Meter("s3://bucket/run", limits=Limits(), clock=clock)
    store = metered(MemoryStore("s3://bucket/run"), meter)
    store.put("a", b"x")
    clock.now = budget.OBSERVE_SECONDS + 1
    found = fault(lambda: store.stat("a"))
    assert (found.reason, found.stalled, bool(found.unreachable)) == ("StoreTooSlow", False, True)
    assert "2 requests" in found.message
    meter.begin()
    assert store.stat("a") is not None


def test_what_was_given_up_makes_no_request_ever() -> None:
    meter = Meter("s3://bucket/run", limits=Limits())
    store = metered(MemoryStore("s3://bucket/run"), meter)
    meter.close()
    meter.begin()
    fault(lambda: store.put("a", b""))
    assert list(store._inner.list()) == []


def test_a_listing_ends() -> None:
    meter = Meter("s3://bucket/run", limits=Limits(objects=2500))
    meter.listed(1000)
    meter.listed(1000)
    found = fault(lambda: meter.listed(1000))
    assert (found.reason, found.stalled) == ("ListingTooLong", True)
    assert "2,500" in found.message


def test_a_log_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LOG_BYTES", 5000)
    meter = Meter("s3://bucket/run", limits=Limits())
    store = metered(MemoryStore("s3://bucket/run"), meter)
    for number in range(1, 7):
        store.put(f"_log/{number}.json", bytes(1000))
    for number in range(1, 6):
        meter.begin()
        store.get(f"_log/{number}.json", max_bytes=2000)
    found = fault(lambda: store.get("_log/6.json", max_bytes=2000))
    assert (found.reason, found.stalled) == ("LogTooLong", True)


def test_large_objects_share_the_memory_and_what_does_not_fit_is_refused() -> None:
    pool = MemoryPool(20 * MIB)
    inner = MemoryStore("s3://bucket/run")
    inner.put("four", bytes(4 * MIB))
    inner.put("eleven", bytes(11 * MIB))
    inner.put("many", b"{" * 2 * MIB)
    meters = [Meter("s3://bucket/run", limits=Limits(), memory=pool) for _ in range(2)]
    one, other = (metered(inner, meter) for meter in meters)
    assert len(one.get("four", max_bytes=64 * MIB).data) == 4 * MIB
    assert len(one.get("four", max_bytes=64 * MIB).data) == 4 * MIB
    waiting = threading.Thread(target=lambda: other.get("four", max_bytes=64 * MIB), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    meters[0].free()
    waiting.join(5)
    assert not waiting.is_alive()
    found = fault(lambda: one.get("eleven", max_bytes=64 * MIB))
    assert (found.reason, found.stalled) == ("ObjectTooLarge", True)
    assert "eleven" in found.message
    meters[1].free()
    assert fault(lambda: one.get("many", max_bytes=64 * MIB)).reason == "ObjectTooLarge", "what it decodes to is larger"
    meters[0].free()
    assert pool.reserve(20 * MIB, seconds=0)


def test_what_is_larger_than_the_caller_allows_is_refused_as_by_the_store() -> None:
    inner = MemoryStore("s3://bucket/run")
    inner.put("a", bytes(3 * MIB))
    store = metered(inner, Meter("s3://bucket/run", limits=Limits()))
    for limit in (1000, 2 * MIB):
        with pytest.raises(ObjectTooLargeError):
            store.get("a", max_bytes=limit)


def test_a_metered_store_keeps_unfinished_uploads_if_the_store_does(tmp_path: object) -> None:
    local = LocalStore(StoreSettings(f"file://{tmp_path}"))
    for inner in (local, MemoryStore("s3://bucket/run")):
        assert isinstance(metered(inner, Meter("x")), KeepsUnfinished) == isinstance(inner, KeepsUnfinished)


def test_of_all_long_logs_the_longest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SMALL_BYTES", 100)
    monkeypatch.setattr(budget, "ALL_LOG_BYTES", 10_000)
    pool = MemoryPool()
    short, long, longest = (Meter(f"s3://bucket/{n}", limits=Limits(), memory=pool) for n in range(3))
    long.read("_log/1.json", 4000)
    longest.read("_log/1.json", 5500)
    short.read("_log/1.json", 400)
    short.read("_log/2.json", 400)
    assert fault(longest.request).reason == "LogTooLong"
    for meter in (short, long):
        meter.request()
    short.read("_log/3.json", 5000)
