"""With credentials that were given, nothing of the identity in this process's environment leaves for any server.

The environment is that of an operator or a job in a cloud: variables, configuration files, workload identity, metadata
services. All of its values say OPERATOR, and all servers that it names record what they are asked.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.opening import Driver, open_store
from doubles.proxies import QuietHandler, listening
from doubles.verbs import OF_UNFINISHED_UPLOADS, REQUESTS
from emulators.servers import Emulator, service_account_key
from support.s3servers import Server

HASTY = Timeouts(deadline_seconds=0.2, answer_seconds=5.0, body_seconds=5.0)
ACCOUNT_KEY = "VEVOQU5U"
CASES: dict[str, tuple[str, Driver, dict[str, str], str]] = {
    "s3 native": ("s3", "native", {"AWS_ACCESS_KEY_ID": "TENANT", "AWS_SECRET_ACCESS_KEY": "x"}, "Credential=TENANT/"),
    "s3fs": ("s3", "fsspec", {"AWS_ACCESS_KEY_ID": "TENANT", "AWS_SECRET_ACCESS_KEY": "x"}, "Credential=TENANT/"),
    "gs": ("gs", "native", {"GOOGLE_APPLICATION_CREDENTIALS_JSON": service_account_key()}, "Bearer ey"),
    "az, a key": (
        "az",
        "native",
        {"AZURE_STORAGE_ACCOUNT_NAME": "tenant", "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY},
        "SharedKey tenant:",
    ),
    "az, a signature": (
        "az",
        "native",
        {"AZURE_STORAGE_ACCOUNT_NAME": "tenant", "AZURE_STORAGE_SAS_TOKEN": "sv=2023-11-03&sig=TENANT"},
        "sig=TENANT",
    ),
}


@dataclass
class Recorder:
    """A server that refuses everything, and remembers the whole of it."""

    url: str = ""
    seen: list[str] = field(default_factory=list)


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    recorder = Recorder()

    class Handler(QuietHandler):
        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recorder.seen.append(f"{self.command} {self.path}\n{self.headers}\n{body[:1000]!r}")
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with listening(Handler) as recorder.url:
        yield recorder


@pytest.fixture
def identities() -> Iterator[Recorder]:
    """Stands for all servers that the environment names."""
    with recording() as recorder:
        yield recorder


@pytest.fixture
def operators_environment(identities: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url, host = identities.url, identities.url.removeprefix("http://")
    token = tmp_path / "token"
    token.write_text("OPERATOR")
    profile = f"region = OPERATOR\nendpoint_url = {url}\nca_bundle = /OPERATOR\ns3 =\n  addressing_style = virtual\n"
    files = {
        ".aws/credentials": "[default]\naws_access_key_id = OPERATOR\naws_secret_access_key = OPERATOR\n",
        ".aws/config": f"[default]\n{profile}",
        ".config/gcloud/application_default_credentials.json": json.dumps(
            {
                "type": "authorized_user",
                "client_id": "OPERATOR",
                "client_secret": "OPERATOR",
                "refresh_token": "OPERATOR",
            }
        ),
        ".azure/azureProfile.json": '{"OPERATOR": 1}',
        "key.json": service_account_key(client_email="OPERATOR@example.com", gcs_base_url=url),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    names = (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
        *("AWS_ROLE_SESSION_NAME", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "GOOGLE_BEARER_TOKEN"),
        *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN"),
        *("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "IDENTITY_HEADER", "AZURE_USER_AGENT"),
        *("AZURE_STORAGE_ENCRYPTION_KEY", "AZURE_CONTAINER_NAME", "GOOGLE_BUCKET", "AWS_SSE_CUSTOMER_KEY_BASE64"),
    )
    values = dict.fromkeys(names, "OPERATOR") | {
        "HOME": str(tmp_path),
        "AWS_PROFILE": "default",
        "AWS_CA_BUNDLE": "/OPERATOR",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/OPERATOR",
        "AWS_ENDPOINT_URL": url,
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ENDPOINT_URL_STS": url,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/ecs",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_SKIP_SIGNATURE": "true",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json"),
        "GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "key.json"),
        "GOOGLE_BASE_URL": url,
        "GOOGLE_SKIP_SIGNATURE": "true",
        "GCE_METADATA_HOST": host,
        "GCE_METADATA_IP": host,
        "STORAGE_EMULATOR_HOST": url,
        "AZURE_FEDERATED_TOKEN_FILE": str(token),
        "AZURE_AUTHORITY_HOST": url,
        "AZURE_STORAGE_ENDPOINT": url,
        "AZURE_STORAGE_CONNECTION_STRING": f"BlobEndpoint={url};AccountName=OPERATOR;AccountKey=OPERATOR",
        "AZURE_SKIP_SIGNATURE": "true",
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "IDENTITY_ENDPOINT": f"{url}/identity",
        "MSI_ENDPOINT": f"{url}/identity",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("operators_environment")
@pytest.mark.parametrize("case", CASES)
def test_no_request_holds_anything_of_the_environments_identity(case: str, identities: Recorder) -> None:
    scheme, driver, values, ours = CASES[case]
    requests = REQUESTS | (OF_UNFINISHED_UPLOADS if scheme == "s3" else {})
    with recording() as tenants:
        settings = StoreSettings(f"{scheme}://bucket/run", tenants.url, credentials=Credentials.of(values))
        store = open_store(settings, driver=driver, timeouts=HASTY)
        for name, request in requests.items():
            tenants.seen.clear()
            with pytest.raises(CheckpointError) as raised:
                request(store)
            assert tenants.seen, f"{name}: {raised.value}"
            for sent in tenants.seen:
                assert "operator" not in sent.lower(), name
                assert ours in sent, name
            assert "operator" not in str(raised.value).lower(), name

    assert identities.seen == []


@pytest.mark.usefixtures("operators_environment")
@pytest.mark.parametrize("case", CASES)
def test_without_an_endpoint_requests_go_to_the_clouds_own(
    case: str, identities: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, driver, values, _ = CASES[case]
    own = {
        "s3": "bucket.s3.us-east-1.amazonaws.com",
        "gs": "storage.googleapis.com",
        "az": "tenant.blob.core.windows.net",
    }
    asked = refuse_to_resolve(monkeypatch)
    store = open_store(
        StoreSettings(f"{scheme}://bucket/run", credentials=Credentials.of(values)), driver=driver, timeouts=HASTY
    )

    for request in (lambda: store.put("key", b"data"), lambda: store.get("key", max_bytes=100)):
        with pytest.raises(CheckpointError, match="no connection"):
            request()

    assert asked == {own[scheme]}
    assert identities.seen == []


def refuse_to_resolve(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Let no name lead anywhere; returns those that were asked for."""
    asked: set[str] = set()

    def resolve(host: str | bytes | None, *_: object, **__: object) -> list[object]:
        asked.add(host.decode() if isinstance(host, bytes) else str(host))
        raise socket.gaierror(socket.EAI_NONAME, "no such host")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


@pytest.mark.store
@pytest.mark.usefixtures("operators_environment")
@pytest.mark.parametrize("driver", ["native", "fsspec"])
def test_a_tenants_s3_works_all_the_same(driver: Driver, moto: Server, identities: Recorder) -> None:
    probe(open_store(moto.settings(), driver=driver))

    assert identities.seen == []


@pytest.mark.store
@pytest.mark.usefixtures("operators_environment")
def test_a_tenants_google_cloud_works_all_the_same(google: Emulator, identities: Recorder) -> None:
    probe(open_store(google.settings()))

    assert identities.seen == []


@pytest.mark.store
@pytest.mark.usefixtures("operators_environment")
def test_a_tenants_azure_works_all_the_same(azure: Emulator, identities: Recorder) -> None:
    probe(open_store(azure.settings()))

    assert identities.seen == []
