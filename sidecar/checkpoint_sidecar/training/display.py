"""Shows the progress of a save or restore: a bar on terminals, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from checkpoint_sidecar.attempt.periodic import Periodic
from checkpoint_sidecar.core.units import moved, size
from checkpoint_sidecar.engine.meter import TransferMeter

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0
BAR_SECONDS = 0.25


@contextmanager
def shown(operation: str, step: int, progress: TransferMeter) -> Iterator[None]:
    """Show the progress inside the block. The caller logs the end and the speed.

    Log lines carry their numbers as attributes too (``extra``): operation, step, bytes, total_bytes, seconds.
    """
    logger.info("%s of step %d: begins", operation, step, extra={"operation": operation, "step": step})
    with _bar(operation, step, progress) if sys.stderr.isatty() else _lines(operation, step, progress):
        yield


@contextmanager
def _lines(operation: str, step: int, progress: TransferMeter) -> Iterator[None]:
    def line() -> None:
        now = progress.snapshot()
        logger.info(
            "%s of step %d, %s to move: %s",
            operation,
            step,
            size(now.total),
            moved(now.done, now.seconds),
            extra={
                "operation": operation,
                "step": step,
                "bytes": now.done,
                "total_bytes": now.total,
                "seconds": now.seconds,
            },
        )

    periodic = Periodic(line, seconds=LINE_SECONDS, name=f"log {operation}", at_once=False)
    periodic.start()
    try:
        yield
    finally:
        periodic.stop()


@contextmanager
def _bar(operation: str, step: int, progress: TransferMeter) -> Iterator[None]:
    with _Bar(desc=f"{operation} of step {step}", unit="B", unit_scale=True, leave=False) as bar:

        def draw() -> None:
            now = progress.snapshot()
            bar.total, bar.n = now.total, now.done
            bar.refresh()

        periodic = Periodic(draw, seconds=BAR_SECONDS, name=f"draw {operation}")
        periodic.start()
        try:
            yield
        finally:
            periodic.stop()


class _Bar(tqdm):  # type: ignore[type-arg]
    """Without tqdm's monitor, a thread that would stay until the process ends."""

    monitor_interval = 0
