"""`checkpoint` on a run in a real S3 server: what it changes, what it refuses, and that nothing is left half done."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from checkpoint_cli.verbs import Door
from checkpoint_sidecar.core.log import RunConfigured
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from support.commands import Program, Ran
from support.s3servers import REGION, Server
from support.trainers import Trainer

pytestmark = pytest.mark.store


@pytest.fixture
def server(object_store: Any) -> Server:
    return Server("seaweedfs", object_store.endpoint, object_store.access_key, object_store.secret_key)


@pytest.fixture
def place(server: Server, monkeypatch: pytest.MonkeyPatch) -> StoreSettings:
    """An empty prefix, which the environment has the keys of."""
    settings = server.settings()
    for name, value in (*server.credentials.items(), ("CHECKPOINT_ENDPOINT", server.endpoint)):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CHECKPOINT_REGION", REGION)
    return settings


@pytest.fixture
def trainer(place: StoreSettings) -> Trainer:
    """A run of three steps that no operator manages."""
    trainer = Trainer(open_store(place)).start()
    for step in (100, 200, 300):
        trainer.commit(step)
    return trainer


@pytest.fixture
def checkpoint(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(Door.BUCKET, capsys)


def test_the_verbs_change_a_run_in_a_bucket_as_training_sees_it(
    checkpoint: Program, place: StoreSettings, trainer: Trainer, server: Server
) -> None:
    url = place.url
    run = StoredRun(trainer.store)

    assert checkpoint("hold", f"{url}@100", "-o", "json").json["done"] is True
    assert checkpoint("rm", f"{url}@100", "--yes").status == 4
    request = checkpoint("save", url, "-o", "name").output.strip()
    assert trainer.run.attempt is not None
    assert trainer.run.attempt.save_request == request
    snapshot = trainer.commit(400, save_request=request)
    assert run.refresh().snapshots[snapshot.id].live
    assert checkpoint("rm", f"{url}@300", "--yes").status == 0
    assert not list(trainer.store.list("step-300/"))
    assert checkpoint("rollback", f"{url}@200", "--yes").status == 0

    copy = server.settings().url
    assert [each["step"] for each in checkpoint("copy", url, copy, "-o", "json").json["items"]] == [400, 200, 100]
    assert checkpoint("verify", copy, "--all", "--checksums").status == 0
    assert server.open_uploads(copy) == []

    restored = trainer.start().run.attempts[2].restored
    assert restored == run.find(200).id
    assert "Attempt 2 restored step 200" in checkpoint("log", url).output


def test_a_run_that_an_operator_manages_is_left_to_it_and_names_the_other_program(
    checkpoint: Program, place: StoreSettings, trainer: Trainer
) -> None:
    policy = Policy(retention=RetentionPolicy(keep_last=1))
    RunLog(trainer.store, writer="operator").append(lambda _: RunConfigured("uid-of-a-checkpoint", 1, policy))
    before = {info.key: info.modified for info in trainer.store.list()}
    verbs = (
        ("save", ""),
        ("hold", "@100"),
        ("release", "@100"),
        ("rollback", "@100", "--yes"),
        ("retire", "@100", "--yes"),
        ("rm", "@100", "--yes"),
        ("prune", "", "--yes"),
    )
    for verb, selector, *options in verbs:
        ran: Ran = checkpoint(verb, f"{place.url}{selector}", *options)
        assert ran.status == 4, verb
        assert "kubectl ckpt" in ran.problem
    assert {info.key: info.modified for info in trainer.store.list()} == before


def test_wrong_keys_and_a_missing_bucket_are_one_line_and_a_status_of_their_own(
    checkpoint: Program, place: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = checkpoint("ls", "s3://no-such-bucket/run")
    assert missing.status == 3
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    denied = checkpoint("ls", place.url)
    assert denied.status == 4
    assert "wrong" not in denied.problem.replace(place.url, "").partition(":")[0]


@pytest.mark.parametrize("arguments", [("ls",), ("ls", "-o", "wide"), ("show",), ("status",)])
def test_nothing_is_wider_than_a_terminal_of_60_columns(
    place: StoreSettings, trainer: Trainer, arguments: tuple[str, ...]
) -> None:
    assert trainer.run.newest
    verb, *options = arguments
    terminal, inside = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 60))
    environment = {**os.environ, "COLUMNS": "60", "TERM": "xterm"}
    program = Path(sys.executable).with_name("checkpoint")
    process = subprocess.Popen([program, verb, place.url, *options], stdout=inside, env=environment)
    os.close(inside)
    shown = b""
    while piece := _piece(terminal):
        shown += piece
    assert process.wait(30) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r", "").splitlines()
    assert len(lines) > 2
    allowed = {place.url, *(each.commit.path for each in trainer.run.snapshots.values())}
    assert [line for line in lines if len(line) > 60 and not any(text in line for text in allowed)] == []


def _piece(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        # The program has ended, and with it the terminal.
        return b""


def test_json_into_a_pipe_has_neither_colors_nor_a_progress_bar(place: StoreSettings, trainer: Trainer) -> None:
    assert trainer.run.newest
    program = Path(sys.executable).with_name("checkpoint")
    done = subprocess.run(
        [program, "verify", place.url, "--checksums", "-o", "json"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert json.loads(done.stdout)["items"][0]["result"] == "ok"
