"""An S3 server on loopback, as tests of the stores see it."""

from __future__ import annotations

import functools
import os
import secrets
from dataclasses import dataclass, replace
from typing import Any

from botocore.session import get_session

from checkpoint_sidecar.store.access import AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, Credentials, StoreSettings
from checkpoint_sidecar.store.http.adapter import HttpStore
from checkpoint_sidecar.store.s3.s3fs_adapter import S3fsStore
from doubles.faulty_server import FaultyServer

REGION = "us-east-1"

SMALLEST_PART = 8 * 1024 * 1024
"""S3 allows 5 MiB; parts are multiples of 4 MiB."""

LONG = os.environ.get("CHECKPOINT_FAULTS") == "long"
"""Whether faults are injected in front of SeaweedFS too, and again and again."""


@dataclass
class Server:
    """Its endpoint, and the credentials with all rights there."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str

    @property
    def credentials(self) -> dict[str, str]:
        return {AWS_ACCESS_KEY_ID: self.access_key, AWS_SECRET_ACCESS_KEY: self.secret_key}

    def settings(self, bucket: str = "", **changes: Any) -> StoreSettings:
        """A fresh prefix, in the shared bucket unless another is named: new buckets cost SeaweedFS a second each."""
        url = f"s3://{bucket or self.shared_bucket}/{secrets.token_hex(6)}/run"
        settings = StoreSettings(url, self.endpoint, REGION, credentials=Credentials.of(self.credentials))
        return replace(settings, **changes)

    @functools.cached_property
    def shared_bucket(self) -> str:
        return self.bucket()

    def client(self) -> Any:
        """The plain AWS client, to look behind the adapters."""
        return get_session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def open_uploads(self, url: str) -> list[str]:
        """Keys of the uploads below a URL that were neither completed nor aborted."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        uploads = self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        return [upload["Key"] for upload in uploads if upload["Key"].startswith(prefix)]

    def bucket(self) -> str:
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name


@dataclass(frozen=True)
class Route:
    """A way to a real server through one that injects faults.

    Attributes:
        patient: A store at the end of it.
        hasty: The same for faults that last: it gives up soon.
    """

    server: Server
    proxy: FaultyServer
    patient: S3fsStore | HttpStore
    hasty: S3fsStore | HttpStore
