"""Kinds of arguments on a command line, each a function from text to value."""

from __future__ import annotations

import argparse

from kubernetes.utils.duration import parse_duration
from kubernetes.utils.quantity import parse_quantity


def address(text: str) -> tuple[str, int]:
    """Read [HOST]:PORT; the host is empty for all addresses."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not [HOST]:PORT")
    return host.strip("[]"), int(port)


def rate(text: str) -> float:
    """Read a quantity of Kubernetes, such as 64Mi."""
    try:
        found = float(parse_quantity(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a quantity such as 64Mi or 1000") from error
    if found < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than nothing")
    return found


def duration(text: str) -> float:
    """Read a duration of Kubernetes, such as 5m, as seconds."""
    try:
        seconds = float(parse_duration(text).total_seconds())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s or 5m") from error
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not longer than zero")
    return seconds


def object_name(text: str) -> tuple[str, str]:
    """Read NAMESPACE/NAME."""
    namespace, _, name = text.partition("/")
    if not namespace or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return namespace, name
