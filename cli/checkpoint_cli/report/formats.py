"""Numbers, times and durations as a reader of the report sees them."""

from __future__ import annotations

import datetime as dt

from checkpoint_sidecar.core import units

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def count(number: int) -> str:
    """Format an integer with separators: ``12,400``."""
    return f"{number:,}"


def counted(number: int, one: str, many: str = "") -> str:
    """Format a number with its noun: ``1 attempt``, ``7 attempts``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def size(number: int) -> str:
    """Format bytes: ``1.2 GiB``."""
    return units.size(number)


def duration(seconds: float) -> str:
    """Format a duration with two units at most: ``2 h 5 min``."""
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < MINUTE:
        return f"{seconds:.0f} s"
    for unit, name, smaller, smaller_name in (
        (MINUTE, "min", 1.0, "s"),
        (HOUR, "h", MINUTE, "min"),
        (DAY, "d", HOUR, "h"),
    ):
        limit = {MINUTE: HOUR, HOUR: DAY}.get(unit, float("inf"))
        whole = round(seconds / smaller)
        if whole * smaller < limit:
            big, rest = divmod(whole, round(unit / smaller))
            return f"{count(big)} {name} {rest} {smaller_name}" if rest else f"{count(big)} {name}"
    raise AssertionError(seconds)


def rough_duration(seconds: float) -> str:
    """Format a duration with one unit, for the end of an axis: ``16 h``."""
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= 2 * unit:
            return f"{count(round(seconds / unit))} {name}"
    return f"{seconds:.0f} s"


def moment(at: dt.datetime) -> str:
    """Format a time for a table, UTC: ``2026-01-01 00:05:00``."""
    return f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"


def percent(share: float) -> str:
    """Format a share; one that is neither nothing nor all is never shown as 0 % or 100 %."""
    if 0 < share < 0.01:
        return "< 1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{share * 100:.0f} %"


def axis_value(number: float) -> str:
    """Format a value on an axis, short: ``12k``, ``2.5M``, ``0.003``."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if factor <= abs(number) < 1e15 and (unit != "k" or abs(number) >= 1e4):
            return f"{number / factor:.6g}{unit}"
    return value(number)


def value(number: float) -> str:
    """Format a metric's value with six significant digits at most."""
    return f"{number:,.6g}" if abs(number) < 1e6 else f"{number:.6g}"
