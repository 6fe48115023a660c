"""Where the requests for a bucket go. What is expected is what botocore does, which is asked as well."""

from __future__ import annotations

from typing import Any

import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from checkpoint_sidecar.core.environment import AddressingStyle
from checkpoint_sidecar.store.s3.target import target_of

CASES: list[tuple[AddressingStyle, str, str, str]] = [
    ("Auto", "", "bucket", "https://bucket.s3.eu-west-1.amazonaws.com"),
    ("Auto", "", "with.dots", "https://s3.eu-west-1.amazonaws.com/with.dots"),
    ("Auto", "", "Capitals", "https://s3.eu-west-1.amazonaws.com/Capitals"),
    ("Auto", "https://s3.internal:9000", "bucket", "https://s3.internal:9000/bucket"),
    ("Auto", "http://127.0.0.1:9000", "bucket", "http://127.0.0.1:9000/bucket"),
    ("Path", "", "bucket", "https://s3.eu-west-1.amazonaws.com/bucket"),
    ("Path", "https://s3.internal", "bucket", "https://s3.internal/bucket"),
    ("Virtual", "https://s3.internal", "bucket", "https://bucket.s3.internal"),
    ("Virtual", "https://s3.internal/", "with.dots", "https://s3.internal/with.dots"),
    ("Virtual", "http://s3.internal", "with.dots", "http://with.dots.s3.internal"),
    ("Virtual", "http://127.0.0.1:9000", "bucket", "http://127.0.0.1:9000/bucket"),
    ("Virtual", "http://[::1]:9000", "bucket", "http://[::1]:9000/bucket"),
]


@pytest.mark.parametrize(("style", "endpoint", "bucket", "base"), CASES)
def test_style_and_endpoint_decide_as_in_botocore(
    style: AddressingStyle, endpoint: str, bucket: str, base: str
) -> None:
    target = target_of(bucket, style=style, region="eu-west-1", endpoint=endpoint)

    assert target.base == base
    assert botocores(style, endpoint, bucket) == base


def botocores(style: AddressingStyle, endpoint: str, bucket: str) -> str:
    """Where botocore itself would send a request for an object."""
    client: Any = botocore.session.Session().create_client(
        "s3",
        region_name="eu-west-1",
        endpoint_url=endpoint or None,
        aws_access_key_id="id",
        aws_secret_access_key="key",
        config=Config(s3={"addressing_style": style.lower()}),
    )
    sent: list[str] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        sent.append(request.url)
        response = AWSResponse(request.url, 200, {}, None)
        response._content = b""
        return response

    client.meta.events.register("before-send.s3", answer)
    client.head_object(Bucket=bucket, Key="key")
    return sent[0].removesuffix("/key")
