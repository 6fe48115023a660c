"""A running operator process, and waiting for what it does."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.admission import Namespace, checkpoint
from support.preloaded import Forked

Body = dict[str, Any]

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class OperatorProcess:
    """The operator as a process of its own, and where it logs to."""

    process: Forked
    log: Path

    @property
    def logged(self) -> str:
        return self.log.read_text()

    def stop(self) -> int:
        """Ask it to end, as Kubernetes does; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Watched:
    """One Checkpoint, as a user looks at it."""

    namespace: Namespace
    name: str = "run"

    @property
    def body(self) -> Body:
        return self.namespace.read("checkpoints", self.name)

    @property
    def status(self) -> Body:
        status: Body = self.body.get("status", {})
        return status

    def condition(self, kind: str) -> Body:
        conditions = self.status.get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def snapshots(self) -> dict[str, Body]:
        """CheckpointSnapshot objects by name."""
        listed = self.namespace.read("checkpointsnapshots")["items"]
        return {item["metadata"]["name"]: item for item in listed}

    def events(self) -> list[str]:
        """Reasons of the Events about it, oldest first."""
        listed = self.namespace.read("events")["items"]
        mine = [e for e in listed if e["involvedObject"]["name"] == self.name]
        mine.sort(key=lambda event: event["eventTime"])
        return [event["reason"] for event in mine]

    def tells(self, reason: str, times: int = 1) -> None:
        """Wait for so many Events of a reason, which follow the status they explain; more of them are a failure."""
        self.eventually(lambda it: it.events().count(reason) >= times)
        assert self.events().count(reason) == times

    def eventually(self, right: Callable[[Watched], Any], *, within: float = TIMEOUT_SECONDS) -> Any:
        """The first true answer of ``right``."""
        deadline = time.monotonic() + within
        while not (answer := right(self)):
            assert time.monotonic() < deadline, json.dumps(self.body, indent=1)
            time.sleep(0.3)
        return answer

    def becomes(self, kind: str, status: str, reason: str, *, within: float = TIMEOUT_SECONDS) -> Body:
        """The condition, once it says so."""

        def right(watched: Watched) -> Body | None:
            condition = watched.condition(kind)
            return condition if (condition.get("status"), condition.get("reason")) == (status, reason) else None

        found: Body = self.eventually(right, within=within)
        return found


StartOperator = Callable[..., OperatorProcess]

FILES = "--allow-file-urls"
UNREAD = "--verify-rate=0"
"""No snapshot is read back in the background."""


def create(namespace: Namespace, url: str, name: str = "run", **spec: Any) -> Watched:
    """Create a Checkpoint of the run at this URL."""
    namespace.create(checkpoint(name, storage={"url": url, **spec.pop("storage", {})}, **spec))
    return Watched(namespace, name)
