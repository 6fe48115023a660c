"""Training that torch_checkpointing saves through our storage: real ranks, a real S3 server, real signals."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from doubles.faulty_server import Fault, faulty_server
from frameworks.gangs import EXAMPLES, committed, gang, trained
from localcluster.objectstore import ObjectStore

SCRIPT = EXAMPLES / "torch_checkpointing_train.py"
STEPS = 6

pytestmark = [pytest.mark.store, pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.fixture
def url(object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/small"


def arguments(url: str, *options: object, steps: int = STEPS) -> list[object]:
    return ["--url", url, "--steps", steps, "--every", 2, *options]


def told(output: str) -> list[str]:
    """The losses, and the digest of weights and optimizer at the end."""
    return [line for line in output.splitlines() if line.startswith(("step ", "stopped with "))]


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[str]:
    return told(trained(SCRIPT, *arguments(f"file://{tmp_path}/undisturbed"), folder=tmp_path))


def test_a_run_killed_in_the_middle_of_a_save_ends_like_an_undisturbed_one(
    url: str, tmp_path: Path, object_store: ObjectStore, undisturbed: list[str]
) -> None:
    with faulty_server(object_store.endpoint) as server:
        server.faults = [Fault("PUT", "/step-4/", "keep silent", times=1_000)]
        with gang(SCRIPT, *arguments(url), folder=tmp_path, AWS_ENDPOINT_URL=server.endpoint) as started:
            started.until(lambda: server.faults[0].times < 1_000 and committed(url) == [2])
            started.signal(signal.SIGKILL)
            assert started.exits() == {-signal.SIGKILL}
    assert committed(url) == [2], "the save was in the middle"
    assert told(trained(SCRIPT, *arguments(url), folder=tmp_path)) == undisturbed[2:]
    assert committed(url) == [2, 4, 6]


def test_sigterm_is_answered_by_a_save_of_the_step_that_was_trained(
    url: str, tmp_path: Path, undisturbed: list[str]
) -> None:
    with gang(SCRIPT, *arguments(url, "--pause", 0.5), folder=tmp_path) as started:
        started.until_printed("step 3 ")
        started.processes[1].send_signal(signal.SIGTERM)
        assert started.exits() == {143}, started.output
    last = committed(url)[-1]
    assert last in (3, 4)
    assert told(trained(SCRIPT, *arguments(url), folder=tmp_path)) == undisturbed[last:]


def test_a_run_continues_on_another_number_of_ranks(url: str, tmp_path: Path) -> None:
    before = told(trained(SCRIPT, *arguments(url, steps=4), folder=tmp_path))
    for ranks in (1, 3):
        assert told(trained(SCRIPT, *arguments(url, steps=4), folder=tmp_path, ranks=ranks)) == before[-1:]
    trained(SCRIPT, *arguments(url, steps=6), folder=tmp_path, ranks=1)
    assert committed(url) == [2, 4, 6]
