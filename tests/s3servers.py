"""An S3 server on loopback, as tests of the stores see it."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from botocore.session import get_session

from checkpoint_sidecar.store.settings import AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, Credentials, StoreSettings

REGION = "us-east-1"


@dataclass
class Server:
    """Where it listens, and who may do everything there."""

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

    @functools.cached_property
    def many_pages(self) -> tuple[str, Sequence[str]]:
        """URL and keys of a run with more objects than fit one page of a listing."""
        client, keys = self.client(), [f"_log/{number:020d}.json" for number in range(1, 1102)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: client.put_object(Bucket=self.shared_bucket, Key=f"many/{key}"), keys))
        return f"s3://{self.shared_bucket}/many", keys

    def client(self) -> Any:
        """The plain AWS client, to look behind the adapters."""
        return get_session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def bucket(self) -> str:
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name
