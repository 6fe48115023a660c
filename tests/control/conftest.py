"""The real operator process beside a real API server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from moto.server import ThreadedMotoServer

from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from localcluster.client import ApiServer
from localcluster.objectstore import ObjectStore
from localcluster.requirements import binary
from support.accounts import account_kubeconfig
from support.admission import Namespace
from support.operators import OperatorProcess
from support.preloaded import preloaded
from support.trainers import Trainer

CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="session")
def served(api_server: ApiServer) -> ApiServer:
    """An API server that knows our kinds."""
    api_server.kubectl("apply", "--server-side", f"--filename={CRDS}")
    api_server.wait_for_kinds()
    return api_server


@pytest.fixture
def namespace(served: ApiServer) -> Namespace:
    """A fresh namespace."""
    return Namespace.fresh(served)


@pytest.fixture
def start_operator(namespace: Namespace, tmp_path: Path) -> Iterator[Callable[..., OperatorProcess]]:
    """Starts an operator that serves the fresh namespace (or all of them); it is stopped after the test.

    ``identity`` holds more variables of its environment: its identity for clouds.
    """
    started: list[OperatorProcess] = []

    def start(
        *arguments: str,
        kubeconfig: Path = namespace.api.kubeconfig,
        everywhere: bool = False,
        identity: Mapping[str, str] = MappingProxyType({}),
    ) -> OperatorProcess:
        log = tmp_path / f"operator-{len(started)}.log"
        given = [*arguments]
        if not any(argument.startswith("--endpoint-allow=") for argument in arguments):
            given.append("--endpoint-allow=127.0.0.1")  # where all stores of the tests are
        if not everywhere:
            given.append(f"--namespace={namespace.name}")
        # Without the credentials of the user that runs the tests: an operator must not find an identity by accident.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        environment["KUBECONFIG"] = str(kubeconfig)
        environment |= identity
        started.append(OperatorProcess(preloaded().start(given, environment, log), log))
        return started[-1]

    yield start
    for operator in started:
        operator.stop()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a run on the local file system."""
    return f"file://{tmp_path / 'bucket' / 'run'}"


@pytest.fixture
def trainer(namespace: Namespace, url: str) -> Trainer:
    """A trainer for the Checkpoint ``run`` of the fresh namespace."""
    return Trainer(LocalStore(StoreSettings(url)), Owner(namespace.api.uid, namespace.name, "run"))


@pytest.fixture
def secret(namespace: Namespace, object_store: ObjectStore) -> str:
    """Name of a Secret with the keys of the object store."""
    namespace.kubectl(
        "create",
        "secret",
        "generic",
        "s3-keys",
        f"--from-literal=AWS_ACCESS_KEY_ID={object_store.access_key}",
        f"--from-literal=AWS_SECRET_ACCESS_KEY={object_store.secret_key}",
    )
    return "s3-keys"


@pytest.fixture
def moto_endpoint() -> Iterator[str]:
    """An S3 server that, unlike SeaweedFS, does not create the buckets that are missing."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def chart_rights(namespace: Namespace, tmp_path: Path, everywhere: bool) -> Iterator[Path]:
    """A kubeconfig of the chart's service account, with the rights the chart gives it there or everywhere."""
    if binary("helm") is None:
        pytest.skip("helm is not built: run `python -m localcluster.build`")
    name, api = namespace.name, namespace.api
    options = ["--set=crds.enabled=false", "--set=injection.mode=Off"]
    if not everywhere:
        options.append(f"--set=watchNamespaces={{{name}}}")
    api.helm("install", name, str(CRDS.parent / "charts" / "checkpoint-operator"), f"--namespace={name}", *options)
    account = json.loads(namespace.kubectl("get", "deployments", "--output=json"))["items"][0]["spec"]["template"][
        "spec"
    ]["serviceAccountName"]
    path = account_kubeconfig(api, name, account, tmp_path / "chart.kubeconfig")
    yield path
    api.helm("uninstall", name, f"--namespace={name}")
