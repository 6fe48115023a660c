"""Axes: from values to places, and ticks at round values."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TIME_STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600 * hours for hours in (1, 2, 3, 6, 12)),
    *(86400 * days for days in (1, 2, 7, 14, 28, 91, 182, 364)),
)
_EPOCH = dt.datetime(1970, 1, 5, tzinfo=dt.UTC)  # a Monday


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear scale from the domain ``low``..``high`` to the places ``start``..``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span > 0 else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    place: float
    label: str


def nice_ceiling(high: float, count: int) -> tuple[float, float]:
    """Return the top of an axis that begins at 0, and the distance of its ticks."""
    step = nice_step(high / count if high > 0 else 1.0)
    return math.ceil(high / step - 1e-9) * step or step, step


def nice_step(least: float) -> float:
    """Return the smallest round number that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def ticks(scale: Scale, count: int, label: Callable[[float], str], *, step: float | None = None) -> list[Tick]:
    """Return ticks at round values, at most about ``count``."""
    distance = step or nice_step(max(scale.high - scale.low, 1e-300) / max(count, 1))
    first = math.ceil(scale.low / distance - 1e-9)
    last = math.floor(scale.high / distance + 1e-9)
    values = [number * distance for number in range(first, min(last, first + 50) + 1)]
    return [Tick(scale(value), label(value)) for value in values]


def time_ticks(scale: Scale, count: int) -> list[Tick]:
    """Return ticks at round times, UTC, for a scale of seconds since 1970."""
    wanted = max(scale.high - scale.low, 1e-6) / max(count, 1)
    step = next((step for step in _TIME_STEPS if step >= wanted), 364 * 86400 * math.ceil(wanted / (364 * 86400)))
    origin = _EPOCH.timestamp()
    first = math.ceil((scale.low - origin) / step)
    found: list[Tick] = []
    for number in range(first, first + 60):
        seconds = origin + number * step
        if seconds > scale.high:
            break
        at = dt.datetime.fromtimestamp(seconds, dt.UTC)
        found.append(Tick(scale(seconds), time_label(at, step, year=scale.high - scale.low > 300 * 86400)))
    return found


def time_label(at: dt.datetime, step: float, *, year: bool) -> str:
    """Return the label of a time on an axis with such a distance of ticks, in seconds."""
    if step >= 86400 or (at.hour == at.minute == at.second == 0):
        return f"{at:%b} {at.day} {at:%Y}" if year else f"{at:%b} {at.day}"
    return f"{at:%H:%M}" if step >= 60 else f"{at:%H:%M:%S}"


def thinned(labels: Sequence[Tick], distance: float) -> list[Tick]:
    """Leave out ticks that are closer than ``distance`` to the one before."""
    kept: list[Tick] = []
    for tick in labels:
        if not kept or abs(tick.place - kept[-1].place) >= distance:
            kept.append(tick)
    return kept
