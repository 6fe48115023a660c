"""The operator with Google Cloud Storage and Azure, as their emulators show them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.store.opening import open_store
from emulators import build, servers
from emulators.servers import Emulator
from support.admission import Namespace, checkpoint
from support.operators import OperatorProcess, Watched
from support.trainers import Trainer

pytestmark = pytest.mark.api

CLOUDS: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[Emulator]]]] = {
    "google": (build.problem("go", build.google()), servers.fake_gcs_server),
    "azure": (build.problem("node", build.azure()), servers.azurite),
}


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    problem, run = CLOUDS[request.param]
    if problem:
        pytest.skip(problem)
    with run() as emulator:
        yield emulator


def test_a_run_in_a_cloud_is_claimed_mirrored_and_its_old_snapshots_are_purged(
    namespace: Namespace, start_operator: Callable[..., OperatorProcess], cloud: Emulator
) -> None:
    literals = [f"--from-literal={key}={value}" for key, value in cloud.credentials.items()]
    namespace.kubectl("create", "secret", "generic", "keys", *literals)
    settings = cloud.settings()
    storage = {"url": settings.url, "endpoint": cloud.endpoint, "credentialsSecret": {"name": "keys"}}
    start_operator()
    namespace.create(checkpoint(storage=storage, retention={"keepLast": 1, "gracePeriod": "0s"}))
    run = Watched(namespace)
    run.becomes("Ready", "True", "Configured")

    store = open_store(settings)
    trainer = Trainer(store, Owner(namespace.api.uid, namespace.name, "run"))
    trainer.start()
    first, second = trainer.commit(100), trainer.commit(200)

    run.eventually(lambda it: it.status.get("latest", {}).get("snapshot") == second.id)
    run.eventually(lambda _: list(store.list(f"{first.commit.path}/")) == [], within=90)
    run.eventually(lambda it: set(it.snapshots()) == {f"run-{second.id}"})
    assert list(store.list(f"{second.commit.path}/"))
