"""Times, ages and durations in words."""

from __future__ import annotations

import datetime as dt
import re

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


_SIZES = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4} | {
    f"{unit}iB": 1024**power for power, unit in enumerate("KMGT", start=1)
}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?) ?([KMGT]?i?B)?")


def parse_size(text: str) -> int:
    """Read ``500MB``, ``5GB``, ``2GiB`` or a number as bytes; an empty text as 0.

    Raises:
        ValueError: It is not a size.
    """
    match = _SIZE.fullmatch(text or "0")
    if match is None or (match[2] or "") not in _SIZES:
        raise ValueError(f"{text!r} is not a size: write 500MB, 5GB or 2GiB.")
    return int(float(match[1]) * _SIZES[match[2] or ""])
