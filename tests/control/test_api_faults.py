"""The real operator and an API server that refuses, forgets, hangs up and falls silent; and what is asked of it."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from doubles.faulty_api import ApiFault, Effect, FaultyApi, faulty_api
from localcluster import network
from support.admission import Namespace, checkpoint
from support.operators import OperatorProcess, Watched
from support.trainers import Trainer

pytestmark = pytest.mark.api

OPTIONS = ("--allow-file-urls", "--verify-rate=0")
WITHIN = 90.0
"""Seconds, on a machine that is busy with other tests; a few are enough on one that is not."""

WRITES = ("POST", "PUT", "PATCH", "DELETE")


@pytest.fixture
def api(namespace: Namespace) -> Iterator[FaultyApi]:
    with faulty_api(namespace.api) as proxy:
        yield proxy


@pytest.fixture
def operator(
    api: FaultyApi, start_operator: Callable[..., OperatorProcess], tmp_path: Path
) -> Callable[..., OperatorProcess]:
    """Starts an operator that reaches the API server through the proxy."""
    return lambda *options: start_operator(*OPTIONS, *options, kubeconfig=api.kubeconfig(tmp_path))


def create(namespace: Namespace, folder: Path, name: str = "run") -> tuple[Watched, Trainer]:
    url = f"file://{folder / name}"
    namespace.create(checkpoint(name, storage={"url": url}, save={"everySteps": 10}))
    return Watched(namespace, name), Trainer(
        LocalStore(StoreSettings(url)), Owner(namespace.api.uid, namespace.name, name)
    )


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([(method, "", "busy") for method in ("GET", "POST", "PATCH")], id="429 with Retry-After"),
        pytest.param([(method, "", "broken") for method in ("GET", "POST", "PATCH")], id="500"),
        pytest.param([(method, "", "cut") for method in ("GET", "POST", "PATCH")], id="connections closed"),
        pytest.param([("GET", "watch=", "expired")], id="410 for watches"),
    ],
)
def test_it_recovers_and_misses_nothing_when_requests_are_answered_by(
    faults: list[tuple[str, str, Effect]],
    namespace: Namespace,
    api: FaultyApi,
    operator: Callable[..., OperatorProcess],
    tmp_path: Path,
) -> None:
    process = operator()
    old, trainer = create(namespace, tmp_path / "bucket")
    old.becomes("Ready", "True", "Configured", within=WITHIN)
    trainer.start()
    api.add(*(ApiFault(*fault, times=3) for fault in faults))
    api.cut_watches()
    snapshot = trainer.commit(100)
    namespace.patch("checkpoints", "run", {"spec": {"save": {"everySteps": 20}}})
    new, _ = create(namespace, tmp_path / "bucket", "new")
    new.becomes("Ready", "True", "Configured", within=WITHIN)
    old.eventually(lambda it: it.status["observedGeneration"] == 2, within=WITHIN)
    old.eventually(lambda it: "SizesMatch" in str(it.snapshots().get(f"run-{snapshot.id}")), within=WITHIN)
    old.eventually(lambda _: api.spent(), within=WITHIN)
    assert trainer.run.policy.save.every_steps == 20
    assert list(old.snapshots()) == [f"run-{snapshot.id}"]
    old.tells("SnapshotCommitted")
    assert process.process.poll() is None


def test_watches_that_fall_silent_delay_the_work_and_fail_the_liveness_probe(
    namespace: Namespace, api: FaultyApi, operator: Callable[..., OperatorProcess], tmp_path: Path
) -> None:
    probes = f"http://127.0.0.1:{next(network.free_ports())}/healthz"
    process = operator("--resync=3s", f"--liveness={probes}")
    run, trainer = create(namespace, tmp_path / "bucket")
    run.becomes("Ready", "True", "Configured", within=WITHIN)
    assert probed(probes) == 200
    api.silent.set()
    namespace.patch("checkpoints", "run", {"spec": {"save": {"everySteps": 20}}})
    run.eventually(lambda it: it.status["observedGeneration"] == 2, within=WITHIN)
    assert trainer.run.policy.save.every_steps == 20
    _until_noticed(namespace, probes)
    assert "the watch never showed" in process.logged


def shows_its_sizes_to_match(mirror: str, run: Watched) -> bool:
    return "SizesMatch" in str(run.snapshots().get(mirror))


def _until_noticed(namespace: Namespace, probes: str) -> None:
    """A watch that happens to begin anew lists what it has missed: then it is the next change that it misses."""
    for every_steps in range(21, 27):
        deadline = time.monotonic() + WITHIN / 6
        while time.monotonic() < deadline:
            if probed(probes) == 500:
                return
            time.sleep(0.5)
        namespace.patch("checkpoints", "run", {"spec": {"save": {"everySteps": every_steps}}})
    pytest.fail("the liveness probe never failed")


def test_a_commit_costs_one_write_of_the_status_and_a_snapshot_two_and_an_idle_operator_writes_nothing(
    namespace: Namespace, api: FaultyApi, operator: Callable[..., OperatorProcess], tmp_path: Path
) -> None:
    operator()
    run, trainer = create(namespace, tmp_path / "bucket")
    run.becomes("Ready", "True", "Configured", within=WITHIN)
    trainer.start()
    run.eventually(lambda it: it.status.get("attempt", {}).get("number") == 1, within=WITHIN)
    for step in (100, 200, 300):
        time.sleep(2)
        api.forget()
        snapshot = trainer.commit(step)
        run.eventually(partial(shows_its_sizes_to_match, f"run-{snapshot.id}"), within=WITHIN)
        time.sleep(5)
        assert written(api) == {
            "PATCH checkpoints status": 1,
            "POST checkpointsnapshots": 1,
            "PATCH checkpointsnapshots status": 1,
            "POST events": 1,
        }
    api.forget()
    time.sleep(8)
    assert written(api) == {}
    assert {path for _, path in api.seen if "watch=" not in path} == set(), "nor does it ask for anything"


def written(api: FaultyApi) -> Counter[str]:
    """Writes by method and kind of object."""
    pattern = re.compile(r"/namespaces/[^/]+/(\w+)(?:/[^/?]+)?(?:/(\w+))?")
    with api.lock:
        found = [(method, pattern.search(path)) for method, path in api.seen if method in WRITES]
    return Counter(" ".join((method, *filter(None, match.groups()))) for method, match in found if match)


def probed(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
