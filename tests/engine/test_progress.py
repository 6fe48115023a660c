"""Bytes of a save or a restore are counted, whichever thread moves them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import pytest

from checkpoint_sidecar.core.errors import TransferCancelledError
from checkpoint_sidecar.engine.meter import ProgressSnapshot, TransferMeter


def test_it_knows_how_much_of_the_expected_bytes_is_done_and_for_how_long() -> None:
    now = 10.0
    progress = TransferMeter(100, clock=lambda: now)
    progress.add(30)
    progress.expect(20)
    now = 12.0
    assert progress.snapshot() == ProgressSnapshot(done=30, total=120, seconds=2.0)


def test_the_rate_is_the_average_since_the_start() -> None:
    assert ProgressSnapshot(done=30, total=120, seconds=2.0).bytes_per_second == 15.0


def test_before_any_time_has_passed_there_is_no_rate() -> None:
    assert ProgressSnapshot(done=30, total=120, seconds=0.0).bytes_per_second == 0.0


@pytest.fixture
def impatient_interpreter() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("impatient_interpreter")
def test_no_byte_is_lost_between_threads() -> None:
    progress = TransferMeter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(progress.add, repeat(1, 20_000)))
    assert progress.snapshot().done == 20_000


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda progress: progress.add(10), id="adds"),
        pytest.param(lambda progress: progress.expect(10), id="expects"),
        pytest.param(TransferMeter.check, id="checks"),
    ],
)
def test_every_use_after_cancellation_fails(use: Callable[[TransferMeter], None]) -> None:
    progress = TransferMeter(100)
    use(progress)
    progress.cancel()
    assert progress.cancelled
    with pytest.raises(TransferCancelledError, match="canceled after"):
        use(progress)
