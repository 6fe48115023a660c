"""The next save and the speed of training, from what is known."""

from __future__ import annotations

import datetime as dt

import pytest

from checkpoint_cli.forecast import next_save, steps_per_second

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


def ago(**duration: float) -> dt.datetime:
    return NOW - dt.timedelta(**duration)


@pytest.mark.parametrize(
    ("every_steps", "every_seconds", "step", "saved_at", "words"),
    [
        (500, None, 1000, ago(minutes=1), "at step 1500"),
        (500, None, 1001, ago(minutes=1), "at step 1500"),
        (500, None, None, None, "at step 500"),
        (None, 900.0, 7, ago(minutes=5), "in 10m"),
        (None, 900.0, 7, ago(minutes=20), "overdue since 2026-01-01T11:55:00Z"),
        (None, 900.0, None, None, "every 15m"),
        (500, 900.0, 7, ago(minutes=5), "at step 500 or in 10m"),
        (None, None, 7, ago(minutes=5), "on request or at SIGTERM only"),
    ],
)
def test_the_next_save_is_at_a_multiple_or_after_an_interval(
    every_steps: int | None, every_seconds: float | None, step: int | None, saved_at: dt.datetime | None, words: str
) -> None:
    found = next_save(
        every_steps=every_steps, every_seconds=every_seconds, step=step, saved_at=saved_at, running=True, now=NOW
    )
    assert found == words


def test_nothing_is_saved_while_nothing_runs() -> None:
    words = next_save(every_steps=500, every_seconds=None, step=7, saved_at=None, running=False, now=NOW)
    assert words == "at step 500, when training runs"


def test_speed_counts_from_the_start_of_the_attempt() -> None:
    start = ago(seconds=100)
    assert steps_per_second(first_step=400, started_at=start, step=900, step_at=NOW) == 5.0
    assert steps_per_second(first_step=400, started_at=start, step=400, step_at=NOW) is None
    assert steps_per_second(first_step=400, started_at=None, step=900, step_at=NOW) is None
    assert steps_per_second(first_step=0, started_at=NOW, step=900, step_at=NOW) is None
