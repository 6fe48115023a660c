"""Lightning on several ranks: `examples/lightning_train.py` against a real S3 server, with real signals."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from doubles.faulty_server import Fault, faulty_server
from frameworks.gangs import EXAMPLES, committed, contents, gang, trained
from localcluster.objectstore import ObjectStore
from training.resuming import differences

SCRIPT = EXAMPLES / "lightning_train.py"
RESTORED = Path(__file__).with_name("lightning_restored.py")
FSDP1 = Path(__file__).with_name("lightning_fsdp1.py")
STEPS = 12
"""Two epochs on two ranks."""

pytestmark = [pytest.mark.store, pytest.mark.distributed]


@pytest.fixture
def url(object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/lightning"


def arguments(url: str, strategy: str = "fsdp2", *, epochs: int = 2, **options: object) -> list[object]:
    given = {"url": url, "strategy": strategy, "epochs": epochs} | options
    return [each for name, value in given.items() for each in (f"--{name}", value)]


def losses(output: str) -> list[str]:
    """The losses by step. Another rank's message may follow on the same line."""
    return re.findall(r"step \d+ loss \d+\.\d{6}", output)


STRATEGIES = {"fsdp2": (SCRIPT, "fsdp2"), "ddp": (SCRIPT, "ddp"), "fsdp1": (FSDP1, "ddp")}


@pytest.mark.parametrize(("script", "strategy"), STRATEGIES.values(), ids=STRATEGIES)
def test_a_run_killed_in_the_middle_of_a_save_ends_like_an_undisturbed_one(
    url: str, tmp_path: Path, object_store: ObjectStore, script: Path, strategy: str
) -> None:
    expected = losses(trained(script, *arguments(f"{url}-undisturbed", strategy), folder=tmp_path))
    with faulty_server(object_store.endpoint) as server:
        server.faults = [Fault("PUT", "/step-8/", "keep silent", times=1_000)]
        with gang(script, *arguments(url, strategy), folder=tmp_path, AWS_ENDPOINT_URL=server.endpoint) as started:
            started.until(lambda: server.faults[0].times < 1_000)
            started.signal(signal.SIGKILL)
            assert started.exits() == {-signal.SIGKILL}
    assert committed(url) == [2, 4, 6], "the save was in the middle"
    assert losses(trained(script, *arguments(url, strategy), folder=tmp_path)) == expected[6:]
    assert committed(url) == [2, 4, 6, 8, 10, 12]
    assert not list(differences(dict(contents(f"{url}-undisturbed", STEPS)), dict(contents(url, STEPS))))
    assert not list(tmp_path.glob("s3*")), "nothing lies beside the bucket"


def test_ranks_agree_when_only_one_gets_sigterm(url: str, tmp_path: Path) -> None:
    expected = losses(trained(SCRIPT, *arguments(f"{url}-undisturbed"), folder=tmp_path))
    with gang(SCRIPT, *arguments(url, pause=0.5, every=1000), folder=tmp_path) as started:
        started.until_printed("step 3 ")
        started.processes[1].send_signal(signal.SIGTERM)
        assert started.exits() == {143}, started.output
        assert "which is saved" in started.output
    (last,) = committed(url)
    assert last in (3, 4, 5)
    assert losses(trained(SCRIPT, *arguments(url), folder=tmp_path)) == expected[last:]
    assert not list(differences(dict(contents(f"{url}-undisturbed", STEPS)), dict(contents(url, STEPS))))


def test_a_run_continues_on_another_number_of_ranks_and_strategy_with_the_same_state(url: str, tmp_path: Path) -> None:
    trained(SCRIPT, *arguments(url, epochs=1), folder=tmp_path)
    restored = [
        trained(RESTORED, url, strategy, folder=tmp_path, ranks=ranks)
        for strategy, ranks in (("fsdp2", 2), ("fsdp2", 3), ("ddp", 2), ("single", 1))
    ]
    digests = {line for output in restored for line in output.splitlines() if line.startswith("digest")}
    assert len(digests) == 1, digests
    assert digests.pop().endswith(" of step 6")
    printed = trained(SCRIPT, *arguments(url, "single"), folder=tmp_path, ranks=1)
    # Two ranks have six batches each in an epoch; one rank has twelve.
    assert [int(line.split()[1]) for line in losses(printed)] == list(range(7, 19))
