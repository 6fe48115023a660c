"""Run in the workbench, with keys and endpoint in the environment: `store.py create|erase <url>`.

Imports nothing of this repository.
"""

from __future__ import annotations

import sys
import time
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

STARTUP_SECONDS = 60.0


def create(client: Any, bucket: str) -> None:
    """Create the bucket as soon as the server that was just started lets us. Raises what it says at last."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while True:
        try:
            client.create_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return


def erase(client: Any, bucket: str, folder: str) -> None:
    """Delete every object below `folder`, which is not empty."""
    if not folder:
        raise ValueError("erase a whole bucket: not what this is for. Name a folder in it.")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/")
    for page in pages:
        for item in page.get("Contents", []):
            client.delete_object(Bucket=bucket, Key=item["Key"])


def main() -> None:
    action, url = sys.argv[1:]
    parts = urlsplit(url)
    client = get_session().create_client("s3")
    if action == "create":
        create(client, parts.netloc)
    else:
        erase(client, parts.netloc, parts.path.strip("/"))


if __name__ == "__main__":
    main()
