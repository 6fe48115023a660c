"""Start a training Job on the cluster and watch it the way a user would: through kubectl and the pod's log."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from demo import manifests
from localcluster.client import Client

POLL_SECONDS = 0.3
_STEP = re.compile(r"step (\d+) loss ")

T = TypeVar("T")


def wait_for(what: str, probe: Callable[[], T | None], *, timeout: float, context: Callable[[], str] = str) -> T:
    """The first true answer of `probe`; TimeoutError names `what` and ends with `context()`."""
    deadline = time.monotonic() + timeout
    while not (answer := probe()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}\n{context()}")
        time.sleep(POLL_SECONDS)
    return answer


@dataclass(frozen=True)
class Line:
    """One line of a pod's log with the time at which the node recorded it."""

    time: dt.datetime
    text: str

    @property
    def step(self) -> int | None:
        """The step that the line says is finished."""
        found = _STEP.match(self.text)
        return int(found[1]) if found else None


class Follower:
    """Follows a pod's log from its start; keeps what it saw after the pod is gone.

    `start` tells one start of the pod's container from the next; both may have the same pod, or one of the same name.
    """

    def __init__(self, cluster: Client, namespace: str, pod: str, start: str = "") -> None:
        self.pod = pod
        self.start = start
        self._lines: list[Line] = []
        self._process = cluster.kubectl_process("logs", "--follow", "--timestamps", f"--namespace={namespace}", pod)
        self._thread = threading.Thread(target=self._read, name=f"follow-{pod}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            time_text, _, text = line.rstrip("\n").partition(" ")
            with contextlib.suppress(ValueError):  # kubectl's own messages carry no time
                self._lines.append(Line(_parse_time(time_text), text))

    @property
    def lines(self) -> list[Line]:
        return list(self._lines)

    @property
    def last_step(self) -> int:
        """The last finished step, 0 before the first."""
        return max((line.step for line in self.lines if line.step is not None), default=0)

    def first_step(self) -> Line | None:
        return next((line for line in self.lines if line.step is not None), None)

    def tail(self, count: int = 25) -> str:
        return "\n".join(line.text for line in self.lines[-count:])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def finish(self, timeout: float = 10.0) -> None:
        """Wait until the whole log was read: it ends when the container does."""
        self._thread.join(timeout)
        self.close()


def _parse_time(text: str) -> dt.datetime:
    # kubelet writes nanoseconds, datetime reads microseconds.
    return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


class TrainingRun:
    """One Checkpoint and its Job in a namespace. Following is by pod, oldest first in `followers`."""

    def __init__(self, cluster: Client, namespace: str, name: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name
        self.followers: list[Follower] = []

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments, stdin=stdin)

    def get(self, kind: str, name: str | None = None) -> Any:
        """One object, or the list of all of a kind when `name` is empty, as parsed JSON."""
        return json.loads(self.kubectl("get", kind, *([name] if name else []), "-o", "json"))

    def apply(self, *objects: manifests.Manifest) -> None:
        self.kubectl("apply", "-f", "-", stdin=manifests.to_stdin(*objects))

    def wait_condition(self, condition: str, timeout: float = 60.0) -> None:
        """Wait for a condition of the Checkpoint to be true."""
        self.kubectl("wait", f"--for=condition={condition}", f"checkpoint/{self.name}", f"--timeout={timeout:.0f}s")

    @property
    def checkpoint(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("checkpoint", self.name)
        return found

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.checkpoint.get("status", {})
        return found

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        """The mirrored CheckpointSnapshot objects of this run, in order of step."""
        every = self.get("checkpointsnapshots")["items"]
        ours = [item for item in every if item["spec"]["checkpointRef"]["name"] == self.name]
        return sorted(ours, key=lambda item: item["spec"]["step"])

    def pods(self) -> list[dict[str, Any]]:
        found = json.loads(self.kubectl("get", "pods", "-l", f"{manifests.LABEL}={self.name}", "-o", "json"))["items"]
        return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def follow_next_pod(self, timeout: float = 90.0) -> Follower:
        """Wait for the start of a container that is not followed yet, in whatever pod; follow its log."""
        known = {follower.start for follower in self.followers}

        def started() -> Follower | None:
            for pod in self.pods():
                start = _start(pod)
                if start and start not in known:
                    return Follower(self.cluster, self.namespace, pod["metadata"]["name"], start)
            return None

        self.followers.append(
            wait_for(f"a pod of {self.name} to start", started, timeout=timeout, context=self.describe)
        )
        return self.followers[-1]

    def node_of(self, pod: str) -> str:
        return str(self.get("pod", pod)["spec"]["nodeName"])

    def wait_step(self, step: int, timeout: float = 240.0) -> None:
        """Wait until the newest followed pod has finished `step`."""
        follower = self.followers[-1]
        wait_for(
            f"step {step} of {self.name}",
            lambda: follower.last_step >= step,
            timeout=timeout,
            context=lambda: f"{follower.tail()}\n{self.describe()}",
        )

    def wait_status(
        self, what: str, holds: Callable[[dict[str, Any]], object], timeout: float = 30.0
    ) -> dict[str, Any]:
        """The first status for which `holds` is true."""

        def probe() -> dict[str, Any] | None:
            status = self.status
            return status if holds(status) else None

        return wait_for(f"status of {self.name}: {what}", probe, timeout=timeout, context=self.describe)

    def wait_finished(self, timeout: float = 180.0) -> None:
        self.kubectl("wait", "--for=condition=Complete", f"job/{self.name}", f"--timeout={timeout:.0f}s")

    def events(self) -> list[dict[str, Any]]:
        """Events of the Checkpoint, in order."""
        found = self.get("events")["items"]
        ours = [
            event
            for event in found
            if _about(event).get("name") == self.name and _about(event).get("kind") == "Checkpoint"
        ]
        return sorted(ours, key=lambda event: event["eventTime"])

    def describe(self) -> str:
        """Return what a user would look at first after a failure."""
        return self.kubectl("get", "checkpoints,checkpointsnapshots,jobs,pods", "-o", "wide")

    def close(self) -> None:
        """Stop following."""
        for follower in self.followers:
            follower.close()

    def delete(self) -> None:
        """Remove whatever runs, with its pods, and the Checkpoint; the data stays."""
        for kind in ("job", "statefulset", "pod"):
            self.kubectl("delete", kind, self.name, "--ignore-not-found", "--cascade=foreground", "--timeout=90s")
        self.kubectl("delete", "checkpoint", self.name, "--ignore-not-found")


def _start(pod: dict[str, Any]) -> str:
    """Which start of its container the pod is at, or empty before the first and between two of them."""
    containers = pod["status"].get("containerStatuses", [])
    if pod["status"]["phase"] == "Pending" or not containers or "waiting" in containers[0]["state"]:
        return ""
    return f"{pod['metadata']['uid']}/{containers[0]['restartCount']}"


def _about(event: dict[str, Any]) -> dict[str, Any]:
    return event.get("involvedObject") or event.get("regarding") or {}
