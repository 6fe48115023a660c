"""Tracks the running save or restore of a rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

from checkpoint_sidecar.engine.meter import ProgressSnapshot, TransferMeter
from checkpoint_sidecar.training.display import shown

Operation: TypeAlias = Literal["save", "restore"]


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """A running save or restore.

    Attributes:
        step: The step that is saved or restored.
        bytes: Progress of this rank's share, in bytes.
    """

    operation: Operation
    step: int
    bytes: ProgressSnapshot


class Transfers:
    """Keeps track of the one save or restore that runs.

    Args:
        show: Whether to show a progress bar or log lines. One rank is enough.
    """

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._now: tuple[Operation, int, TransferMeter] | None = None

    @property
    def progress(self) -> TransferProgress | None:
        """The progress, or None while nothing runs."""
        now = self._now
        if now is None:
            return None
        operation, step, progress = now
        return TransferProgress(operation, step, progress.snapshot())

    @contextmanager
    def under_way(self, operation: Operation, step: int, progress: TransferMeter) -> Iterator[None]:
        """Report this operation as running inside the block."""
        self._now = operation, step, progress
        try:
            with shown(operation, step, progress) if self._show else nullcontext():
                yield
        finally:
            self._now = None
