"""When the next save is due, and how fast training is. Pure."""

from __future__ import annotations

import datetime as dt

from checkpoint_cli.words import duration, rfc3339


def next_save(
    *,
    every_steps: int | None,
    every_seconds: float | None,
    step: int | None,
    saved_at: dt.datetime | None,
    running: bool,
    now: dt.datetime,
) -> str:
    """Return in words when the next save is due.

    Args:
        step: The last step that is known; the next multiple of ``every_steps`` is after it.
        saved_at: The last commit, or the start of the attempt.
        running: Whether training is known to run.
    """
    parts = []
    if every_steps:
        parts.append(f"at step {((step or 0) // every_steps + 1) * every_steps}")
    if every_seconds and saved_at is not None:
        due = saved_at + dt.timedelta(seconds=every_seconds)
        left = (due - now).total_seconds()
        parts.append(f"in {duration(left)}" if left > 0 else f"overdue since {rfc3339(due)}")
    elif every_seconds:
        parts.append(f"every {duration(every_seconds)}")
    if not parts:
        return "on request or at SIGTERM only"
    words = " or ".join(parts)
    return words if running else f"{words}, when training runs"


def steps_per_second(
    *, first_step: int, started_at: dt.datetime | None, step: int | None, step_at: dt.datetime | None
) -> float | None:
    """Return the average speed of an attempt since its start, or None if it is unknown."""
    if started_at is None or step is None or step_at is None or step <= first_step:
        return None
    seconds = (step_at - started_at).total_seconds()
    return (step - first_step) / seconds if seconds > 0 else None
