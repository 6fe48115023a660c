"""Times, ages and durations in words."""

from __future__ import annotations

import datetime as dt

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def rfc3339(time: dt.datetime | None) -> str | None:
    """Format a time of the store's clock."""
    return None if time is None else time.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def parse_time(text: str | None) -> dt.datetime | None:
    """Read a time; None for an absent or unreadable one."""
    try:
        time = dt.datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return time if time is None or time.tzinfo else time.replace(tzinfo=dt.UTC)


def duration(seconds: float | None) -> str:
    """Format a duration with its two largest units: ``2d3h``, ``5m``, ``0s``."""
    if seconds is None:
        return "-"
    left = max(int(seconds), 0)
    parts: list[str] = []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return "".join(parts) or "0s"


def age(text: str | None, now: dt.datetime) -> str:
    """Format the time since a point in time, ``-`` if it is not known."""
    time = parse_time(text)
    return "-" if time is None else duration((now - time).total_seconds())


def parse_duration(text: str) -> float:
    """Read ``90``, ``90s``, ``15m``, ``1h30m`` or ``2d`` as seconds.

    Raises:
        ValueError: It is not a duration.
    """
    if text.isdecimal():
        return float(text)
    sizes = {unit: size for size, unit in _UNITS}
    seconds, digits = 0, ""
    for character in text:
        if character.isdecimal():
            digits += character
        elif character in sizes and digits:
            seconds, digits = seconds + int(digits) * sizes[character], ""
        else:
            raise ValueError(f"{text!r} is not a duration: write 90s, 15m or 1h30m")
    if digits or not text:
        raise ValueError(f"{text!r} is not a duration: write 90s, 15m or 1h30m")
    return float(seconds)
