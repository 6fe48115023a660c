"""The clouds' emulators, running on loopback, as tests of the stores see them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from checkpoint_sidecar.store.access import (
    AZURE_STORAGE_ACCOUNT_KEY,
    AZURE_STORAGE_ACCOUNT_NAME,
    GOOGLE_APPLICATION_CREDENTIALS_JSON,
    Credentials,
    StoreSettings,
)
from checkpoint_sidecar.store.common.calls import DEFAULT_TIMEOUTS
from checkpoint_sidecar.store.http.client import HttpClient
from checkpoint_sidecar.store.http.dialect import Message
from emulators import build

ACCOUNT, BUCKET = "tenantaccount", "training"
_READY_SECONDS = 60


@dataclass(frozen=True)
class Emulator:
    """One that runs, with a bucket in it."""

    name: str
    scheme: str
    endpoint: str
    credentials: Mapping[str, str]

    def settings(self, bucket: str = BUCKET, **changes: Any) -> StoreSettings:
        """A fresh prefix."""
        url = f"{self.scheme}://{bucket}/{secrets.token_hex(6)}/run"
        return replace(StoreSettings(url, self.endpoint, credentials=Credentials.of(self.credentials)), **changes)


@contextlib.contextmanager
def fake_gcs_server() -> Iterator[Emulator]:
    """Google Cloud Storage, in memory. It looks at no identity."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [str(build.google()), "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
    with running([*command, f"-public-host={address}", "-log-level=error"], port):
        body = json.dumps({"name": BUCKET}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{address}/storage/v1/b?project=tests", body, headers)
        with urllib.request.urlopen(request):
            pass
        credentials = {GOOGLE_APPLICATION_CREDENTIALS_JSON: service_account_key()}
        yield Emulator("fake-gcs-server", "gs", f"http://{address}", credentials)


@contextlib.contextmanager
def azurite() -> Iterator[Emulator]:
    """Azure Blob Storage, in memory. It checks signatures as Azure does."""
    port = free_port()
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    main = build.azure() / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    command = [shutil.which("node") or "node", str(main), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    # Azure's own client, below adlfs, may speak a later version of the protocol than Azurite knows.
    options = ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    credentials = {AZURE_STORAGE_ACCOUNT_NAME: ACCOUNT, AZURE_STORAGE_ACCOUNT_KEY: key}
    emulator = Emulator("azurite", "az", f"http://127.0.0.1:{port}", credentials)
    with running([*command, *options], port, AZURITE_ACCOUNTS=f"{ACCOUNT}:{key}"):
        client = HttpClient(emulator.settings(), DEFAULT_TIMEOUTS, credentials)
        client.send(Message("PUT", query={"restype": "container"}, success=(201,)), 10)
        yield emulator


def service_account_key(**changes: Any) -> str:
    """A key file as Google issues them, of a key made for it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    fields = {
        "type": "service_account",
        "project_id": "tests",
        "private_key_id": "0123456789abcdef",
        "private_key": private.decode(),
        "client_email": "training@tests.iam.gserviceaccount.com",
        "client_id": "1",
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    return json.dumps({name: value for name, value in (fields | changes).items() if value is not None})


@contextlib.contextmanager
def running(command: list[str], port: int, **environment: str) -> Iterator[None]:
    """Run a server until it listens, then the block; end it afterwards."""
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)
    try:
        _wait(process, port)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen")


def free_port() -> int:
    """A port of loopback that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
