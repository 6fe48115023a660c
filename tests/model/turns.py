"""Actors that run one at a time: each is a thread that stops before every store call until it is given a turn.

The code that gives the turns decides the interleaving, and nothing else does: no two actors ever run at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

TIMEOUT_SECONDS = 60.0
"""Real time: an actor that makes no store call within it hangs."""


class Killed(BaseException):
    """The actor's process is gone."""


class Actor:
    """A process of the story.

    Args:
        body: What it does, with itself as the argument.

    Attributes:
        next_call: What it will do at its next turn, for the story.
        fate: What happens to its next call; see ``world.Connection``. Taken by that call.
        error: What ended it, if not its own end.
        blocked: Whether it waits for another actor, so that a turn would be lost on it.
        speaks_for: The owner in whose name an operator acts; empty for trainers.
        reads_back: Whether it compares the checksums of what stays before it deletes other snapshots.
        head: Number of the newest log entry it has read.
        jumps: How far the store's clock had been set in all, back and forth, when it read that clock last.
    """

    def __init__(self, name: str, body: Callable[[Actor], None]) -> None:
        self.name = name
        self.next_call = ""
        self.fate = ""
        self.calls = 0
        self.has_the_turn = False
        self.blocked: Callable[[], bool] = lambda: False
        self.speaks_for = ""
        self.reads_back = False
        self.head = 0
        self.jumps = 0.0
        self.ended = False
        self.killed = False
        self.error: BaseException | None = None
        self._body = body
        self._may_go, self._stopped = threading.Lock(), threading.Lock()
        self._may_go.acquire()
        self._stopped.acquire()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._wait()

    def go(self) -> None:
        """One turn: its next store call, and what follows up to the one after."""
        if not self.ended:
            self._may_go.release()
            self._wait()

    def kill(self) -> None:
        """End it where it stands, as SIGKILL does."""
        self.killed = True
        self.go()

    def stop_before(self, call: str) -> str:
        """Called by the actor: wait for the turn of this store call.

        Returns:
            The call's fate.
        """
        if not self.killed:
            self.next_call = call
            self._stopped.release()
            self._may_go.acquire()
        if self.killed:
            raise Killed
        self.calls += 1
        fate, self.fate = self.fate, ""
        return fate

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Called by the actor: lose turns until something holds that another actor brings about."""
        self.blocked = lambda: not holds()
        try:
            while not holds():
                self.stop_before(f"wait for {what}")
        finally:
            self.blocked = lambda: False

    def _wait(self) -> None:
        self.has_the_turn = True
        if not self._stopped.acquire(timeout=TIMEOUT_SECONDS):
            raise RuntimeError(f"{self.name} hangs after {self.next_call}")
        self.has_the_turn = False

    def _run(self) -> None:
        try:
            self._body(self)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - raised where the turns are given
            self.error = error
        self.ended = True
        self.next_call = ""
        self._stopped.release()
