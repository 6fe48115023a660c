"""Unfinished uploads: what a killed writer leaves in S3 can be found and discarded, through both adapters."""

from __future__ import annotations

import datetime as dt

import pytest

from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import KeepsUnfinished, Store
from checkpoint_sidecar.store.common import parts
from checkpoint_sidecar.store.opening import Driver, open_store
from store.conftest import S3_STORES
from support.s3servers import Server

KEY = "step-7/0001-aaaaaaaa/__0_0.distcp"


@pytest.mark.parametrize("where", S3_STORES)
def test_an_unfinished_upload_is_listed_and_can_be_discarded(
    where: tuple[str, Driver], request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(where[0])
    settings = server.settings()
    store = open_store(settings, driver=where[1])
    assert isinstance(store, KeepsUnfinished)
    begun = begin(server, settings, KEY)
    begin(server, settings, "elsewhere/object")
    (found,) = store.unfinished("step-")
    assert (found.key, found.upload_id) == (KEY, begun)
    if server.name != "moto":  # which says 2010 of every upload
        assert abs((found.begun - server_time(store)).total_seconds()) < 60
    for _ in range(2):
        store.discard(found)
        assert not list(store.unfinished("step-"))
    assert store.stat(KEY) is None


@pytest.mark.parametrize("where", S3_STORES[:1])
def test_a_finished_upload_is_none(where: tuple[str, Driver], request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(where[0])
    store = open_store(server.settings(), driver=where[1])
    parts.write_object(store, KEY, bytes(2 * parts.PART_BYTES))
    assert isinstance(store, KeepsUnfinished)
    assert not list(store.unfinished())


def begin(server: Server, settings: StoreSettings, key: str) -> str:
    bucket, _, prefix = settings.url.removeprefix("s3://").partition("/")
    client = server.client()
    upload: str = client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{key}")["UploadId"]
    client.upload_part(Bucket=bucket, Key=f"{prefix}/{key}", UploadId=upload, PartNumber=1, Body=bytes(1000))
    return upload


def server_time(store: Store) -> dt.datetime:
    store.put("clock", b"")
    info = store.stat("clock")
    assert info is not None
    return info.modified
