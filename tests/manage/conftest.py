"""Stores that runs are managed in: memory, and a real S3 server."""

from __future__ import annotations

import pytest

from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from doubles.memory import MemoryStore
from support.s3servers import Server


@pytest.fixture(params=["memory", pytest.param("seaweed", marks=pytest.mark.store)])
def bucket(request: pytest.FixtureRequest) -> Store:
    """An empty prefix."""
    if request.param == "memory":
        return MemoryStore()
    kept = request.getfixturevalue("object_store")
    return open_store(Server("seaweedfs", kept.endpoint, kept.access_key, kept.secret_key).settings())
