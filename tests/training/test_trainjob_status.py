"""What a save writes into the status of a TrainJob, by the protocol of Kubeflow Trainer, over TLS.

``tests/workloads`` has the real controller.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api import models

from checkpoint_sidecar.integrations import kubeflow
from checkpoint_sidecar.integrations.kubeflow import trainjob_status
from localcluster.pki import Authority
from training.test_integrations import SNAPSHOT

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs/llama/status"


class Server(http.server.ThreadingHTTPServer):
    """Stands for the status server of Kubeflow Trainer's controller."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = 200
        self.seen: list[tuple[str, str, dict[str, Any]]] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.server.answer)
        if self.server.answer == 307:
            self.send_header("Location", self.path)
        self.end_headers()
        self.wfile.write(b"Forbidden")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and an environment as Kubeflow Trainer makes it."""
    authority = Authority(tmp_path / "pki")
    pair = authority.issue("status", user="status", hosts=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    (tmp_path / "token").write_text("first\n")
    with Server() as made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        monkeypatch.setenv(kubeflow.URL, f"https://127.0.0.1:{made.server_port}{PATH}")
        monkeypatch.setenv(kubeflow.CA_CERT, str(authority.certificate))
        monkeypatch.setenv(kubeflow.TOKEN, str(tmp_path / "token"))
        yield made
        made.shutdown()


def test_a_snapshot_becomes_progress_and_metrics(server: Server, tmp_path: Path) -> None:
    hook = trainjob_status(400)
    hook(SNAPSHOT)
    (tmp_path / "token").write_text("second\n")
    hook(dataclasses.replace(SNAPSHOT, step=300, snapshot="300-1-abcdefgh"))
    (path, token, first), (_, renewed, second) = server.seen
    assert (path, token, renewed) == (PATH, "Bearer first", "Bearer second")
    assert first["trainerStatus"]["progressPercentage"] == 25
    assert "estimatedRemainingSeconds" not in first["trainerStatus"], "one save says nothing about the pace"
    assert second["trainerStatus"]["progressPercentage"] == 75
    assert second["trainerStatus"]["estimatedRemainingSeconds"] >= 0
    assert {one["name"]: one["value"] for one in second["trainerStatus"]["metrics"]} == {
        "checkpoint_step": "300",
        "checkpoint_snapshot": "300-1-abcdefgh",
        "loss": "0.25",
    }


def test_the_report_is_what_the_published_type_takes(server: Server) -> None:
    trainjob_status(100)(SNAPSHOT)
    ((_, _, body),) = server.seen
    parsed = models.TrainerV1alpha1TrainerStatus.from_dict(body["trainerStatus"])
    assert parsed is not None
    assert parsed.progress_percentage == 100
    assert parsed.last_updated_time is not None


@pytest.mark.parametrize("status", [307, 403, 500])
def test_a_server_that_does_not_take_it_is_named_and_no_redirect_is_followed(server: Server, status: int) -> None:
    server.answer = status
    with pytest.raises(OSError, match=f"report progress to https://127.0.0.1{PATH}: status {status}, Forbidden"):
        trainjob_status(100)(SNAPSHOT)
    assert len(server.seen) == 1


def test_a_server_with_another_certificate_gets_no_token(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kubeflow.CA_CERT, str(Authority(tmp_path / "other").certificate))
    with pytest.raises(ssl.SSLError):
        trainjob_status(100)(SNAPSHOT)
    assert server.seen == []


@pytest.mark.parametrize("name", [kubeflow.URL, kubeflow.CA_CERT, kubeflow.TOKEN])
def test_where_it_is_not_offered_nothing_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name)
    trainjob_status(100)(SNAPSHOT)
    assert server.seen == []
