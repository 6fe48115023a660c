"""Formats sizes and counts for readers."""

from __future__ import annotations

_UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def size(count: int) -> str:
    """Format bytes for a sentence: ``1.2 GiB``."""
    amount, unit = _scaled(count)
    return f"{amount} {unit}B"


def quantity(count: int) -> str:
    """Format bytes as a Kubernetes quantity, rounded for display: ``1.2Gi``."""
    amount, unit = _scaled(count)
    return f"{amount}{unit}"


def moved(count: int, seconds: float) -> str:
    """Format a transfer for a sentence: ``1.2 GiB in 4.1 s, 300.0 MiB/s``."""
    return f"{size(count)} in {seconds:.1f} s, {size(round(count / seconds) if seconds else 0)}/s"


def counted(count: int, noun: str) -> str:
    """Format a number with its noun: ``1 pod``, ``7 pods``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _scaled(count: int) -> tuple[str, str]:
    amount, power = float(count), 0
    while round(amount, 1) >= 1024 and power < len(_UNITS) - 1:
        amount, power = amount / 1024, power + 1
    return (f"{amount:.1f}" if power else str(count)), _UNITS[power]
