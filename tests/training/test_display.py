"""A human can see how far a save or restore has got."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from checkpoint_sidecar.core.units import moved
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.training import display
from checkpoint_sidecar.training.display import shown
from checkpoint_sidecar.training.transfers import Transfers


@contextmanager
def terminal() -> Iterator[list[str]]:
    """The standard error stream is a terminal; what was written to it is there at the end."""
    written: list[str] = []
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as stream, contextlib.redirect_stderr(stream):
        yield written
    # At the end of its output, reading a terminal fails.
    with os.fdopen(ours, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while True:
            written.append(screen.read(4096).decode(errors="replace"))


@pytest.fixture
def progress() -> TransferMeter:
    progress = TransferMeter(200_000_000)
    progress.add(50_000_000)
    return progress


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_without_a_terminal_there_are_lines_now_and_then(
    progress: TransferMeter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "checkpoint_sidecar")
    monkeypatch.setattr(display, "LINE_SECONDS", 0.1)
    with contextlib.redirect_stderr(io.StringIO()), shown("save", 7, progress):
        time.sleep(0.25)
    begins, *lines = caplog.records
    assert begins.getMessage() == "save of step 7: begins"
    assert len(lines) in {1, 2}
    assert lines[0].getMessage().startswith("save of step 7, 190.7 MiB to move: 47.7 MiB in 0.1 s, ")
    assert {"operation": "save", "step": 7, "bytes": 50_000_000, "total_bytes": 200_000_000}.items() <= vars(
        lines[0]
    ).items()
    assert 0.1 <= vars(lines[0])["seconds"] < 1


def test_what_is_quick_needs_no_line(progress: TransferMeter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "checkpoint_sidecar")
    with shown("save", 7, progress):
        pass
    assert [record.getMessage() for record in caplog.records] == ["save of step 7: begins"]


def test_a_terminal_has_a_bar_instead(progress: TransferMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "BAR_SECONDS", 0.02)
    with terminal() as written, shown("restore", 7, progress):
        time.sleep(0.1)
    drawn = "".join(written)
    assert "restore of step 7:  25%" in drawn
    assert "50.0M/200M" in drawn
    assert drawn.endswith("\r"), "the bar does not stay on the screen"


def test_what_is_under_way_can_be_asked_for(progress: TransferMeter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "checkpoint_sidecar")
    transfers = Transfers(show=False)
    assert transfers.progress is None
    with transfers.under_way("restore", 7, progress):
        now = transfers.progress
        assert now is not None
        assert (now.operation, now.step, now.bytes.done, now.bytes.total) == ("restore", 7, 50_000_000, 200_000_000)
    assert transfers.progress is None
    assert not caplog.records, "one rank is enough to show it"


@pytest.mark.parametrize(
    ("count", "seconds", "text"),
    [
        pytest.param(1_234_000_000, 4.0, "1.1 GiB in 4.0 s, 294.2 MiB/s", id="a-snapshot"),
        pytest.param(0, 0.0, "0 B in 0.0 s, 0 B/s", id="nothing"),
    ],
)
def test_speed_is_printed_for_people(count: int, seconds: float, text: str) -> None:
    assert moved(count, seconds) == text
