"""Kubeflow Trainer: progress and the newest snapshot in ``status.trainerStatus`` of the TrainJob.

The protocol is that of Kubeflow Trainer 2.3 (``pkg/statusserver``): a POST with a token of the pod that is for this
TrainJob alone. Three variables of the pod say where; they are there if the feature gate ``TrainJobStatus`` is on.
"""

from __future__ import annotations

import datetime
import http.client
import json
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from checkpoint_sidecar.training.hooks import CommitHook, CommittedSnapshot

URL = "KUBEFLOW_TRAINER_SERVER_URL"
CA_CERT = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105
"""Path of a file: the kubelet renews the token."""

TIMEOUT_SECONDS = 10
_LONGEST = 64
"""Characters of a metric's name or value that a TrainJob takes."""


@dataclass(frozen=True, slots=True)
class _Server:
    host: str
    port: int | None
    path: str
    authorities: str
    token: Path

    def post(self, body: dict[str, Any]) -> None:
        """Send a status. Raises `OSError`; a redirect is not followed, because the token is for this server."""
        trusted = ssl.create_default_context(cafile=self.authorities)
        headers = {"Authorization": f"Bearer {self.token.read_text().strip()}", "Content-Type": "application/json"}
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT_SECONDS, context=trusted)
        try:
            connection.request("POST", self.path, json.dumps(body), headers)
            answer = connection.getresponse()
            said = answer.read(1000).decode(errors="replace")
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise OSError(
                f"report progress to https://{self.host}{self.path}: status {answer.status}, {said.strip()}. "
                "Look at the log of Kubeflow Trainer's controller."
            )


def trainjob_status(total_steps: int) -> CommitHook:
    """Return a hook for ``Checkpointer(on_commit=...)`` that reports each snapshot in the status of the TrainJob.

    It sets the progress in percent, the remaining seconds, and as metrics ``checkpoint_step``, ``checkpoint_snapshot``
    and those of the snapshot. Each report replaces the one before, by whatever it was sent. Outside of a TrainJob, and
    where Kubeflow Trainer takes no reports, the hook does nothing.

    Args:
        total_steps: The step at which training ends.
    """
    server = _server(os.environ)
    if server is None:
        return lambda _: None
    began: tuple[float, int] | None = None

    def report(snapshot: CommittedSnapshot) -> None:
        nonlocal began
        began = began or (time.monotonic(), snapshot.step)
        steps = snapshot.step - began[1]
        pace = (time.monotonic() - began[0]) / steps if steps > 0 else None
        server.post({"trainerStatus": _status(snapshot, total_steps, pace)})

    return report


def _server(environ: Mapping[str, str]) -> _Server | None:
    if not all(environ.get(name) for name in (URL, CA_CERT, TOKEN)):
        return None
    url = urlsplit(environ[URL])
    return _Server(url.hostname or "", url.port, url.path, environ[CA_CERT], Path(environ[TOKEN]))


def _status(snapshot: CommittedSnapshot, total_steps: int, seconds_per_step: float | None) -> dict[str, Any]:
    left = max(total_steps - snapshot.step, 0)
    values = {"checkpoint_step": str(snapshot.step), "checkpoint_snapshot": snapshot.snapshot}
    values |= {name: f"{value:.9g}" for name, value in snapshot.metrics.items() if len(name) <= _LONGEST}
    status: dict[str, Any] = {
        "progressPercentage": 100 * (total_steps - left) // total_steps if left else 100,
        "metrics": [{"name": name, "value": value} for name, value in values.items()],
        "lastUpdatedTime": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if seconds_per_step is not None:
        status["estimatedRemainingSeconds"] = round(left * seconds_per_step)
    return status
