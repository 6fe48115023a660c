"""What a rank is saving or restoring at the moment, for whoever wants to know."""

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
    """A save or restore under way.

    Attributes:
        step: The step that is saved or restored.
        bytes: Of this rank's share.
    """

    operation: Operation
    step: int
    bytes: ProgressSnapshot


class Transfers:
    """At most one save or restore at a time.

    Args:
        show: Whether to show it to a human, as a progress bar or in log lines. One rank is enough.
    """

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._now: tuple[Operation, int, TransferMeter] | None = None

    @property
    def progress(self) -> TransferProgress | None:
        """How far it has got, or None while nothing is under way."""
        now = self._now
        if now is None:
            return None
        operation, step, progress = now
        return TransferProgress(operation, step, progress.snapshot())

    @contextmanager
    def under_way(self, operation: Operation, step: int, progress: TransferMeter) -> Iterator[None]:
        """For the length of a block, this is what goes on."""
        self._now = operation, step, progress
        try:
            with shown(operation, step, progress) if self._show else nullcontext():
                yield
        finally:
            self._now = None
