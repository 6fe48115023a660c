"""The CRDs and the chart on a real API server. Nothing runs there: what is created stays as it was admitted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from localcluster import controlplane, network, workspace
from localcluster.client import ApiServer
from support.admission import Namespace, checkpoint, eventually, pod
from support.charts import CHART, Render, of_kind, rendered
from support.webhooks import needs, offers, running

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def crds(api_server: ApiServer) -> ApiServer:
    """An API server that knows our kinds."""
    add_kinds(api_server)
    return api_server


def add_kinds(api: ApiServer) -> None:
    kinds = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    if int(api.get("/version")["minor"]) < 30:
        for version in (each for kind in kinds for each in kind["spec"]["versions"]):
            version.pop("selectableFields", None)  # as the chart does
    api.kubectl("apply", "--server-side", "--filename=-", stdin=yaml.safe_dump_all(kinds))
    api.wait_for_kinds()


@pytest.fixture
def render(helm: Path, tmp_path: Path) -> Render:
    """Renders the chart with given values, as on a cluster with given APIs."""
    return partial(rendered, helm, tmp_path)


@pytest.fixture(scope="session")
def chart(crds: ApiServer, helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server on which the chart is installed as release `ckpt` in the namespace `operators`.

    Where the server has no MutatingAdmissionPolicy, the webhook runs, too.
    """
    with contextlib.ExitStack() as opened:
        crds.helm("install", "ckpt", str(CHART), "--namespace=operators", "--create-namespace", "--take-ownership")
        if not offers(crds, "mutatingadmissionpolicies"):
            opened.enter_context(running(crds, tmp_path_factory.mktemp("webhook")))
        await_injection(crds)
        yield crds


@pytest.fixture(scope="session")
def policies(chart: ApiServer) -> ApiServer:
    """An API server that injects by itself."""
    needs(chart, "mutatingadmissionpolicies")
    return chart


@pytest.fixture(scope="session")
def webhook_chart(api_server: ApiServer, helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of its own with what the chart renders for Kubernetes 1.28, and the webhook of it."""
    scratch = tmp_path_factory.mktemp("webhook")
    with workspace.temporary("webhook") as place:
        server = controlplane.start(place, network.free_ports()).api
        add_kinds(server)
        server.kubectl("create", "namespace", "operators")
        objects = rendered(helm, scratch, kube_version="1.28.0", clusterId=server.uid, guardrails={"mode": "Off"})
        wanted = [one for one in objects if one not in of_kind(objects, "CustomResourceDefinition")]
        server.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(wanted))
        with running(server, scratch):
            await_injection(server)
            yield server


def await_injection(api: ApiServer) -> None:
    probe = Namespace.fresh(api)
    probe.create(checkpoint())
    # Between the two policies' effects the pod is denied.
    eventually(lambda: probe.admitted(pod())["containers"][0], lambda one: "env" in one)
    probe.denied(pod("missing"))


@pytest.fixture(scope="session")
def anywhere(crds: ApiServer) -> Namespace:
    """A namespace for all tests that only ask and store nothing."""
    return Namespace.fresh(crds)


@pytest.fixture
def namespace(crds: ApiServer) -> Namespace:
    """A fresh namespace where our kinds are known."""
    return Namespace.fresh(crds)


@pytest.fixture
def served(chart: ApiServer) -> Namespace:
    """A fresh namespace on a server that has the chart."""
    return Namespace.fresh(chart)
