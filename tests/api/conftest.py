"""The CRDs and the chart on a real API server. Nothing runs there: what is created stays as it was admitted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from localcluster.client import ApiServer
from support.admission import Namespace, checkpoint, eventually, pod
from support.charts import CHART, Render, rendered

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def crds(api_server: ApiServer) -> ApiServer:
    """An API server that knows our kinds."""
    api_server.kubectl("apply", "--server-side", f"--filename={ROOT / 'crds'}")
    api_server.kubectl("wait", "crd", "--for=condition=Established", "--all", "--timeout=30s")
    return api_server


@pytest.fixture
def render(helm: Path, tmp_path: Path) -> Render:
    """Renders the chart with given values, as on a cluster with given APIs."""
    return partial(rendered, helm, tmp_path)


@pytest.fixture(scope="session")
def chart(crds: ApiServer, helm: Path) -> ApiServer:
    """An API server on which the chart is installed as release `ckpt` in the namespace `operators`."""
    crds.helm("install", "ckpt", str(CHART), "--namespace=operators", "--create-namespace", "--take-ownership")
    probe = Namespace.fresh(crds)
    probe.create(checkpoint())
    eventually(lambda: probe.create(pod(), "--dry-run=server")["spec"]["containers"][0], lambda one: "env" in one)
    probe.denied(pod("missing"))
    return crds


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
