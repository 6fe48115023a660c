"""torchtitan's own trainer with our manager: real ranks, a real S3 server, real signals.

torchtitan has no CPU mode: `examples/torchtitan_train.py` says what stands in for its device.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from doubles.faulty_server import Fault, faulty_server
from frameworks.gangs import EXAMPLES, committed, contents, gang, trained
from localcluster.objectstore import ObjectStore
from training.resuming import differences

SCRIPT = EXAMPLES / "torchtitan_train.py"
RESTORED = Path(__file__).with_name("torchtitan_restored.py")
STEPS = 6

pytestmark = [pytest.mark.store, pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.fixture
def url(object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/titan"


def arguments(url: str, *options: object, steps: int = STEPS) -> list[object]:
    return ["--folder", url, "--steps", steps, "--interval", 2, *options]


def losses(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("step ")]


@pytest.fixture
def undisturbed(url: str, tmp_path: Path) -> tuple[dict[str, Any], list[str]]:
    """What the last snapshot of an undisturbed run holds, and the losses."""
    printed = trained(SCRIPT, *arguments(f"{url}-undisturbed"), folder=tmp_path)
    return dict(contents(f"{url}-undisturbed", STEPS)), losses(printed)


def test_a_run_killed_in_the_middle_of_a_save_ends_like_an_undisturbed_one(
    url: str, tmp_path: Path, object_store: ObjectStore, undisturbed: tuple[dict[str, Any], list[str]]
) -> None:
    expected, steps = undisturbed
    with faulty_server(object_store.endpoint) as server:
        server.faults = [Fault("PUT", "/step-4/", "keep silent", times=1_000)]
        with gang(SCRIPT, *arguments(url), folder=tmp_path, AWS_ENDPOINT_URL=server.endpoint) as started:
            started.until(lambda: server.faults[0].times < 1_000)
            started.signal(signal.SIGKILL)
            assert started.exits() == {-signal.SIGKILL}
    assert committed(url) == [2], "the save was in the middle"
    assert losses(trained(SCRIPT, *arguments(url), folder=tmp_path)) == steps[2:]
    assert committed(url) == [2, 4, 6]
    assert not list(differences(expected, dict(contents(url, STEPS))))


def test_sigterm_is_answered_by_a_save_of_the_step_that_was_trained(
    url: str, tmp_path: Path, undisturbed: tuple[dict[str, Any], list[str]]
) -> None:
    expected, steps = undisturbed
    with gang(SCRIPT, *arguments(url, "--pause", 0.5), folder=tmp_path) as started:
        started.until_printed("step 3 ")
        started.signal(signal.SIGTERM)
        assert started.exits() == {143}, started.output
        assert "which is saved" in started.output
    last = committed(url)[-1]
    assert last in (3, 4)
    assert losses(trained(SCRIPT, *arguments(url), folder=tmp_path)) == steps[last:]
    assert not list(differences(expected, dict(contents(url, STEPS))))


def test_a_run_continues_on_another_number_of_ranks_without_its_data_loader(url: str, tmp_path: Path) -> None:
    trained(SCRIPT, *arguments(url, steps=2), folder=tmp_path)
    with gang(SCRIPT, *arguments(url, steps=3), folder=tmp_path, ranks=1) as started:
        assert started.exits() == {1}
        assert "dataloader resharding is not supported" in started.output, "torchtitan's own refusal"
    assert committed(url) == [2], "training did not begin again in silence"
    restored = [trained(RESTORED, "--folder", url, folder=tmp_path, ranks=ranks) for ranks in (2, 1)]
    digests = {line for output in restored for line in output.splitlines() if line.startswith("digest")}
    assert len(digests) == 1, "every tensor is the same on one rank as on two"
    printed = trained(SCRIPT, *arguments(url, "--exclude", "dataloader", steps=3), folder=tmp_path, ranks=1)
    assert losses(printed)[0].startswith("step 3 ")
    assert committed(url) == [2, 3]
