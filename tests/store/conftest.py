"""The stores that the tests here run against: every adapter, in front of every server that can run on this machine."""

from __future__ import annotations

import json
import os
import pickle
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, get_args

import pytest
from moto.server import ThreadedMotoServer

from checkpoint_sidecar.conformance import promises
from checkpoint_sidecar.conformance.suite import Trial
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common import parts
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.http.adapter import HttpStore
from checkpoint_sidecar.store.opening import Driver, open_store
from checkpoint_sidecar.store.s3.s3fs_adapter import S3fsStore
from doubles.faulty_server import FaultyServer, faulty_server
from doubles.memory import MemoryStore
from emulators import build, servers
from emulators.servers import Emulator
from support.s3servers import LONG, SMALLEST_PART, Route, Server

FURTHER_URLS = "CHECKPOINT_CONFORMANCE_URLS"
"""Environment variable: URLs of further stores to test, separated by spaces, reached by the ambient identity."""

FAULTS_REPORT = "build/faults.json"
"""Which faults were injected into which verb through which adapter, and what came of it."""

Opener: TypeAlias = Callable[[pytest.FixtureRequest], Store]


@pytest.fixture(scope="session")
def seaweed(object_store: Any) -> Server:
    return Server("seaweedfs", object_store.endpoint, object_store.access_key, object_store.secret_key)


@pytest.fixture(scope="session")
def moto() -> Iterator[Server]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield Server("moto", f"http://{host}:{port}", "a-key-id", "a-secret-key")
    server.stop()


@pytest.fixture(scope="session")
def google() -> Iterator[Emulator]:
    if problem := build.problem("go", build.google()):
        pytest.skip(problem)
    with servers.fake_gcs_server() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def azure() -> Iterator[Emulator]:
    if problem := build.problem("node", build.azure()):
        pytest.skip(problem)
    with servers.azurite() as emulator:
        yield emulator


@pytest.fixture(scope="session", params=["moto", "seaweed"] if LONG else ["moto"])
def faulty(request: pytest.FixtureRequest) -> Iterator[tuple[Server, FaultyServer]]:
    server: Server = request.getfixturevalue(request.param)
    with faulty_server(server.endpoint) as proxy:
        yield server, proxy


@pytest.fixture(scope="session", params=[S3fsStore, HttpStore], ids=["s3fs", "native"])
def _route(request: pytest.FixtureRequest, faulty: tuple[Server, FaultyServer]) -> Route:
    server, proxy = faulty
    settings = server.settings(endpoint=proxy.endpoint)
    patient, hasty = (
        request.param(settings, timeouts=timeouts) for timeouts in (Timeouts(20, 10, 20), Timeouts(0.5, 0.3, 0.4))
    )
    return Route(server, proxy, patient, hasty)


@pytest.fixture
def route(_route: Route) -> Route:
    """The route, which behaves until a test breaks it."""
    _route.proxy.forget()
    return _route


@pytest.fixture
def folder() -> str:
    return f"{secrets.token_hex(6)}/"


_FINDINGS: pytest.StashKey[list[dict[str, str]]] = pytest.StashKey()


@pytest.fixture
def report_fault(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Notes a line of the table of faults."""

    def report(*, fault: str, verb: str, route: Route, outcome: str) -> None:
        line = {"fault": fault, "verb": verb, "adapter": type(route.patient).__name__, "server": route.server.name}
        request.config.stash.setdefault(_FINDINGS, []).append(line | {"outcome": outcome})

    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if lines := session.config.stash.get(_FINDINGS, None):
        report = session.config.rootpath / FAULTS_REPORT
        report.parent.mkdir(exist_ok=True)
        report.write_text(json.dumps(lines, indent=1) + "\n")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, and one race: SeaweedFS takes seconds to settle it."""
    monkeypatch.setattr(parts, "PART_BYTES", SMALLEST_PART)
    monkeypatch.setattr(promises, "RACES", 1)


def _memory(_: pytest.FixtureRequest) -> Store:
    return MemoryStore()


def _local(request: pytest.FixtureRequest) -> Store:
    folder: Path = request.getfixturevalue("tmp_path_factory").mktemp("store")
    return open_store(StoreSettings(f"file://{folder}/team/run"))


def _s3(server: str, driver: Driver) -> Opener:
    def open_(request: pytest.FixtureRequest) -> Store:
        running: Server = request.getfixturevalue(server)
        return open_store(running.settings(), driver=driver)

    return open_


def _cloud(fixture: str) -> Opener:
    def open_(request: pytest.FixtureRequest) -> Store:
        running: Emulator = request.getfixturevalue(fixture)
        return open_store(running.settings())

    return open_


def _at(url: str, driver: Driver) -> Opener:
    return lambda _: open_store(StoreSettings(f"{url.rstrip('/')}/{secrets.token_hex(6)}"), driver=driver)


def _further() -> Iterator[Any]:
    for url in os.environ.get(FURTHER_URLS, "").split():
        for driver in get_args(Driver)[1:3] if url.startswith("s3:") else ("auto",):
            yield pytest.param(_at(url, driver), id=f"{url} through {driver}", marks=pytest.mark.store)


DRIVERS: dict[str, Driver] = {"s3fs": "fsspec", "native": "native"}
S3_ROUTES = {
    f"{server} through {name}": (server, driver) for server in ("seaweed", "moto") for name, driver in DRIVERS.items()
}
S3_STORES = [pytest.param(route, id=name, marks=pytest.mark.store) for name, route in S3_ROUTES.items()]
STORES = [
    pytest.param(_memory, id="memory"),
    pytest.param(_local, id="local files"),
    *(pytest.param(_s3(*route), id=name, marks=pytest.mark.store) for name, route in S3_ROUTES.items()),
    pytest.param(_cloud("google"), id="fake-gcs-server", marks=pytest.mark.store),
    pytest.param(_cloud("azure"), id="azurite", marks=pytest.mark.store),
    *_further(),
]


@pytest.fixture(scope="session", params=STORES)
def opened(request: pytest.FixtureRequest) -> Store:
    store: Store = request.param(request)
    return store


@pytest.fixture(scope="session")
def opened_again(opened: Store) -> Store:
    """Another client of the same store; the memory has none."""
    if isinstance(opened, MemoryStore):
        return opened
    other: Store = pickle.loads(pickle.dumps(opened))
    return other


@pytest.fixture
def trial(opened: Store, opened_again: Store) -> Trial:
    """An empty folder of each of the stores."""
    return Trial(opened, opened_again, f"{secrets.token_hex(6)}/")


@pytest.fixture(scope="session", params=S3_STORES)
def s3(request: pytest.FixtureRequest) -> tuple[Server, Driver]:
    """A server, and the adapter to reach it by."""
    name, driver = request.param
    return request.getfixturevalue(name), driver
