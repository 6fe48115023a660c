"""Runs a small action every few seconds beside the training loop."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.failures import described

logger = logging.getLogger(__name__)


class Periodic:
    """Calls ``action`` every ``seconds`` in a thread until ``stop``, then ``goodbye`` once.

    A failed action is retried at its next turn; only the first failure of an outage and its end are logged.

    Args:
        at_once: Whether the first call is made at the start rather than ``seconds`` later.
    """

    def __init__(
        self,
        action: Callable[[], object],
        *,
        seconds: float,
        name: str,
        at_once: bool = True,
        goodbye: Callable[[], object] | None = None,
    ) -> None:
        self._action = action
        self._goodbye = goodbye
        self._seconds = seconds
        self._name = name
        self._first_delay = 0.0 if at_once else seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, timeout_seconds: float = 5.0) -> None:
        """Stop the thread and wait for it; a thread that hangs in a request is abandoned."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        self._repeat()
        if self._goodbye is not None:
            with contextlib.suppress(BaseException):  # nothing depends on it, and the thread ends here anyway
                self._goodbye()

    def _repeat(self) -> None:
        failing = False
        delay = self._first_delay
        while not self._stopping.wait(delay):
            try:
                self._action()
            except BaseException as error:  # noqa: BLE001 - a native client may panic; the next turn needs this thread
                if not failing:
                    cause = str(error) if isinstance(error, CheckpointError) else described(error)
                    logger.warning("%s: %s; retrying every %g s", self._name, cause, self._seconds)
                failing = True
            else:
                if failing:
                    logger.info("%s: works again", self._name)
                failing = False
            delay = self._seconds
