"""The stores that the conformance suite runs against: every adapter, in front of every server that can run here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import Driver, open_store
from checkpoint_sidecar.store.settings import StoreSettings
from doubles.memory import MemoryStore
from s3servers import Server


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


def _memory(_: pytest.FixtureRequest) -> Store:
    return MemoryStore()


def _local(request: pytest.FixtureRequest) -> Store:
    folder: Path = request.getfixturevalue("tmp_path")
    return open_store(StoreSettings(f"file://{folder}/team/run"))


def _s3(server: str, driver: Driver) -> Callable[[pytest.FixtureRequest], Store]:
    def open_(request: pytest.FixtureRequest) -> Store:
        running: Server = request.getfixturevalue(server)
        return open_store(running.settings(), driver=driver)

    return open_


S3_STORES = [
    pytest.param((server, driver), id=f"{server} through {client}", marks=pytest.mark.store)
    for server in ("seaweed", "moto")
    for driver, client in (("fsspec", "s3fs"), ("obstore", "obstore"))
]
STORES = [
    pytest.param(_memory, id="memory"),
    pytest.param(_local, id="local files"),
    *(pytest.param(_s3(*case.values[0]), id=case.id, marks=pytest.mark.store) for case in S3_STORES),
]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Store:
    """A fresh, empty store."""
    opened: Store = request.param(request)
    return opened


@pytest.fixture(params=S3_STORES)
def s3(request: pytest.FixtureRequest) -> tuple[Server, Driver]:
    """A server, and the adapter to reach it by."""
    name, driver = request.param
    return request.getfixturevalue(name), driver
