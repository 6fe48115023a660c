"""pytest fixtures: real servers, started once per session and only if a test asks.

Where a machine cannot run one, its tests are skipped with the reason; with `LOCALCLUSTER_REQUIRED=1` in the
environment (continuous integration) they fail instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path

import pytest

from localcluster import cluster as localcluster
from localcluster import controlplane, network, objectstore, requirements, workspace
from localcluster.client import ApiServer
from localcluster.objectstore import ObjectStore
from localcluster.requirements import binary

BUSY = {"api_server": "api", "cluster": "cluster"}
"""Fixtures that compute even while no test asks them anything, with the marker of the tests that need them."""
RUNNING = pytest.StashKey[dict[str, Callable[[], None]]]()
"""By the marker: what ends the fixture, after the fixtures that depend on it."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUNNING] = {}


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
    if fixturedef.argname in BUSY:
        request.config.stash[RUNNING][BUSY[fixturedef.argname]] = partial(fixturedef.finish, request)  # type: ignore[arg-type]


def end(config: pytest.Config, markers: Container[str]) -> None:
    """End the busy servers of the tests with these markers, of which none is left."""
    running = config.stash[RUNNING]
    for marker in [each for each in running if each in markers]:
        running.pop(marker)()


def require(problem: str | None) -> None:
    """Skip the test (or fail it, where everything is required) if there is a problem."""
    if problem is None:
        return
    if os.environ.get("LOCALCLUSTER_REQUIRED") == "1":
        pytest.fail(problem, pytrace=False)
    pytest.skip(problem)


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """SeaweedFS with an S3 gateway on loopback."""
    require(None if objectstore.weed() else objectstore.MISSING)
    with workspace.temporary("objects") as place:
        daemon, store = objectstore.start(place.daemons, network.free_ports())
        objectstore.wait_ready(daemon, store)
        yield store


@pytest.fixture
def bucket(object_store: ObjectStore) -> str:
    """The name of a fresh bucket."""
    return object_store.bucket()


@pytest.fixture(scope="session")
def helm() -> Path:
    """The helm binary; skips where it is not built."""
    found = binary("helm")
    if found is None:
        pytest.skip("helm is not built: run `python -m localcluster.build`")
    return found


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """A kube-apiserver with its etcd: admission, validation and RBAC are real, but nothing acts on what is created."""
    require(requirements.control_plane_problem())
    with workspace.temporary("api") as place:
        yield controlplane.start(place, network.free_ports()).api


@pytest.fixture(scope="session")
def cluster() -> Iterator[localcluster.Cluster]:
    """The whole of it: control plane, two nodes that run pods, object store."""
    require(requirements.cluster_problem())
    with workspace.temporary("cluster") as place:
        yield localcluster.up(place)
