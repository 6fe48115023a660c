"""Calls a user's functions after commits and restores, on rank 0, where they cannot harm training."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.core.log import SnapshotCommitted, Trigger
from checkpoint_sidecar.training.restoring import Restored

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CommittedSnapshot:
    """A snapshot that was committed just now.

    Attributes:
        snapshot: Its id.
        url: The run's URL.
        folder: URL of the folder with its files.
        metrics: Numbers by name, as they were given to ``step`` or ``save``.
        seconds: Duration of the save.
        blocked_seconds: Part of it for which training waited.
        bytes: Size of its files.
    """

    step: int
    snapshot: str
    attempt: int
    url: str
    folder: str
    trigger: Trigger
    metrics: Mapping[str, float]
    seconds: float
    blocked_seconds: float
    bytes: int

    @property
    def address(self) -> str:
        """Its address, for ``load`` and the command line."""
        return f"{self.url}@{self.snapshot}"


@dataclass(frozen=True, slots=True)
class RestoredSnapshot:
    """The start of an attempt, after its restore.

    Attributes:
        snapshot: Id of the snapshot that was loaded; empty for a fresh start.
        step: Its step; 0 for a fresh start.
        attempt: Number of the attempt.
        url: The URL of the run that has the snapshot: another one if this is a warm start.
        seconds: Duration of the restore.
        bytes: Size of the snapshot.
    """

    step: int
    snapshot: str
    attempt: int
    url: str
    metrics: Mapping[str, float]
    seconds: float
    bytes: int


CommitHook: TypeAlias = Callable[[CommittedSnapshot], object]
RestoreHook: TypeAlias = Callable[[RestoredSnapshot], object]


class Hooks:
    """Calls hooks one after the other in a thread of their own, in the order of their events.

    A hook that raises is logged. One that hangs delays later hooks only; training ends without it.

    Args:
        on_commit, on_restore: A hook, several, or None.
    """

    def __init__(
        self,
        on_commit: CommitHook | Iterable[CommitHook] | None,
        on_restore: RestoreHook | Iterable[RestoreHook] | None,
    ) -> None:
        self._on_commit = _listed(on_commit)
        self._on_restore = _listed(on_restore)
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def committed(self, entry: SnapshotCommitted, *, url: str) -> None:
        """Call the hooks for a commit. Returns at once."""
        if self._on_commit:
            self._call(
                self._on_commit,
                CommittedSnapshot(
                    step=entry.step,
                    snapshot=entry.snapshot,
                    attempt=entry.attempt,
                    url=url,
                    folder=f"{url}/{entry.path}",
                    trigger=entry.trigger,
                    metrics=numbers(entry.metrics),
                    seconds=entry.seconds,
                    blocked_seconds=entry.blocked_seconds,
                    bytes=entry.bytes,
                ),
            )

    def restored(self, value: RestoredSnapshot) -> None:
        """Call the hooks for a start. Returns at once."""
        if self._on_restore:
            self._call(self._on_restore, value)

    def stop(self, *, timeout_seconds: float) -> None:
        """Wait for the hooks that were not called yet, at most so long."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                logger.warning("a hook still runs: this process does not wait for it")

    def _call(self, hooks: tuple[Callable[[Value], object], ...], value: Value) -> None:
        for hook in hooks:
            self._calls.put(lambda hook=hook: hook(value))  # type: ignore[misc]  # bound to this hook
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="call hooks", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException:
                logger.exception("a hook failed; training is not affected")


def numbers(metrics: Mapping[str, str]) -> dict[str, float]:
    """Return metrics of the log as numbers."""
    return {name: float(value) for name, value in metrics.items()}


def _listed(
    hooks: Callable[[Value], object] | Iterable[Callable[[Value], object]] | None,
) -> tuple[Callable[[Value], object], ...]:
    if hooks is None:
        return ()
    return (hooks,) if callable(hooks) else tuple(hooks)


def restored_snapshot(session: AttemptSession, restored: Restored | None) -> RestoredSnapshot:
    """Describe a start to hooks.

    Args:
        restored: What was loaded; None for a fresh start.
    """
    url, attempt = session.store.url, session.attempt
    if restored is None:
        return RestoredSnapshot(0, "", attempt, url, {}, 0.0, 0)
    begun = session.state.warm_start
    if begun is not None and restored.url:
        return RestoredSnapshot(restored.step, restored.snapshot, attempt, restored.url, {}, begun.seconds, begun.bytes)
    commit = session.log.run.snapshots[restored.snapshot].commit
    metrics = numbers(commit.metrics)
    return RestoredSnapshot(restored.step, restored.snapshot, attempt, url, metrics, restored.seconds, commit.bytes)
