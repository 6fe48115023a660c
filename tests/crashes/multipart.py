"""Multipart uploads to S3, seen from behind the adapters; here, because ranks must be able to import it."""

from __future__ import annotations

from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import Driver, open_store
from crashes.points import Crash
from support.s3servers import Server


def wrap(crash: Crash, settings: StoreSettings, driver: Driver, rank: int, _: Store) -> Store:
    """The store of one rank, through a driver of the test's choice."""
    return crash.wrap(rank, open_store(settings, driver=driver))


def two_parts_are_stored(server: Server, key: str) -> bool:
    """Whether an upload of the key is under way of which the server has two parts."""
    client, bucket = server.client(), server.shared_bucket
    for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        if upload["Key"].endswith(key):
            stored = client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]).get("Parts", [])
            if len(stored) >= 2:
                return True
    return False
