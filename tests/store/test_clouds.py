"""Google Cloud Storage and Azure, as their emulators show them: identities, missing buckets, and faults of uploads."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.core.errors import AccessDeniedError, BucketNotFoundError, ObjectExistsError, StoreError
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.azure import identity as azure_identity
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.store.common.ranges import read_range
from checkpoint_sidecar.store.google import identity as google_identity
from checkpoint_sidecar.store.google.identity import GoogleIdentity, parse_key
from checkpoint_sidecar.store.http.adapter import HttpStore
from checkpoint_sidecar.store.opening import open_store
from doubles.faulty_server import Answer, Effect, Fault, FaultyServer, faulty_server
from doubles.proxies import QuietHandler, listening
from doubles.resumable import resumable_uploads
from doubles.verbs import REQUESTS
from emulators.servers import ACCOUNT, Emulator, service_account_key
from support.s3servers import SMALLEST_PART

pytestmark = pytest.mark.store

DATA = bytes(range(256)) * 8


def account_signature(key: str, permissions: str, *, minutes: int = 10) -> str:
    """A shared access signature for the whole account."""
    ends = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    fields = {"sv": "2020-12-06", "ss": "b", "srt": "sco", "sp": permissions, "se": ends}
    lines = [ACCOUNT, permissions, "b", "sco", "", ends, "", "", fields["sv"], "", ""]
    digest = hmac.new(base64.b64decode(key), "\n".join(lines).encode(), hashlib.sha256).digest()
    return urlencode(fields | {"sig": base64.b64encode(digest).decode()})


def signed_by(azure: Emulator, signature: str) -> Credentials:
    return Credentials.of({"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_SAS_TOKEN": signature})


@pytest.mark.parametrize("start", ["", "?"], ids=["bare", "as the portal shows it"])
def test_a_shared_access_signature_serves_every_verb(azure: Emulator, start: str) -> None:
    signature = start + account_signature(azure.credentials["AZURE_STORAGE_ACCOUNT_KEY"], "rwdlac")
    store = open_store(azure.settings(credentials=signed_by(azure, signature)))

    probe(store)
    data = bytes(SMALLEST_PART) + DATA
    write_object(store, "object", data)
    assert read_range(store, "object", 1, len(data) - 1) == data[1:]


@pytest.mark.parametrize("use", REQUESTS)
def test_a_wrong_key_of_azure_is_access_denied_and_quotes_no_secret(azure: Emulator, use: str) -> None:
    wrong = base64.b64encode(b"of another account").decode()
    credentials = Credentials.of({**azure.credentials, "AZURE_STORAGE_ACCOUNT_KEY": wrong})
    with pytest.raises(AccessDeniedError) as raised:
        REQUESTS[use](open_store(azure.settings(credentials=credentials)))
    assert wrong not in "".join(traceback.format_exception(raised.value))


def test_a_signature_that_does_not_allow_to_write_is_access_denied(azure: Emulator) -> None:
    signature = account_signature(azure.credentials["AZURE_STORAGE_ACCOUNT_KEY"], "rl")
    store = open_store(azure.settings(credentials=signed_by(azure, signature)))
    with pytest.raises(AccessDeniedError) as raised:
        store.put("key", b"data")
    assert signature.partition("sig=")[2] not in str(raised.value)


@pytest.fixture(params=["google", "azure"])
def cloud(request: pytest.FixtureRequest) -> Emulator:
    emulator: Emulator = request.getfixturevalue(request.param)
    return emulator


def test_a_missing_bucket_is_named_as_such(cloud: Emulator) -> None:
    missing = open_store(cloud.settings(bucket="no-such-bucket"))

    for name in ("list", "put", "create", "upload", "upload in parts"):
        with pytest.raises(BucketNotFoundError, match="no-such-bucket"):
            REQUESTS[name](missing)


@pytest.fixture
def faults(cloud: Emulator) -> Iterator[FaultyServer]:
    with faulty_server(cloud.endpoint, keeps_host=cloud.scheme != "gs") as proxy:
        yield proxy


@pytest.fixture
def store(cloud: Emulator, faults: FaultyServer) -> Store:
    return HttpStore(cloud.settings(endpoint=faults.endpoint), timeouts=Timeouts(20, 2, 5))


FAULTS: list[Effect | Answer] = [(503, ""), "reset the connection", "lose the reply"]


@pytest.mark.parametrize("effect", FAULTS, ids=str)
@pytest.mark.parametrize("number", [1, 2, 3, 4], ids=lambda number: f"request {number}")
def test_an_upload_to_azure_survives_a_fault_of_any_of_its_requests(
    azure: Emulator, effect: Effect | Answer, number: int
) -> None:
    data = bytes(2 * SMALLEST_PART) + DATA
    with faulty_server(azure.endpoint) as proxy:
        store = HttpStore(azure.settings(endpoint=proxy.endpoint), timeouts=Timeouts(20, 2, 5))
        proxy.faults.append(Fault("PUT", "", effect, after=number - 1))

        write_object(store, "object", data)

        assert store.get("object", max_bytes=len(data)).data == data


@pytest.mark.parametrize("kept", [1 << 40, SMALLEST_PART // 2], ids=["all", "half a part"])
@pytest.mark.parametrize("effect", FAULTS, ids=str)
@pytest.mark.parametrize(
    ("method", "number"), [("POST", 1), ("PUT", 1), ("PUT", 2), ("PUT", 3)], ids=["start", "first", "middle", "last"]
)
def test_an_upload_to_google_continues_where_it_was_when_a_request_fails(
    effect: Effect | Answer, method: str, number: int, kept: int
) -> None:
    data = bytes(SMALLEST_PART) + bytes([1]) * SMALLEST_PART + DATA
    key = Credentials.of({"GOOGLE_APPLICATION_CREDENTIALS_JSON": service_account_key()})
    with resumable_uploads(keeps_at_most=kept) as (url, objects), faulty_server(url) as proxy:
        proxy.faults.append(Fault(method, "", effect, after=number - 1))
        store = HttpStore(
            StoreSettings("gs://bucket/run", proxy.endpoint, credentials=key), timeouts=Timeouts(20, 2, 5)
        )

        write_object(store, "object", data)

        assert objects["run/object"] == data


@pytest.mark.parametrize("verb", ["put", "list", "get", "delete", "create"])
def test_small_requests_survive_an_overload(store: Store, faults: FaultyServer, verb: str) -> None:
    store.put("key", b"data") if verb != "create" else None
    faults.faults += [Fault(method, "", (503, ""), times=2) for method in ("GET", "HEAD", "PUT", "POST", "DELETE")]
    if verb == "create":
        with pytest.raises(StoreError):
            REQUESTS[verb](store)
    else:
        REQUESTS[verb](store)


def test_a_lost_race_is_reported_as_such(store: Store) -> None:
    store.put_if_absent("key", b"first")
    with pytest.raises(ObjectExistsError):
        store.put_if_absent("key", b"second")


def test_bytes_that_arrive_damaged_in_google_cloud_storage_are_noticed(google: Emulator) -> None:
    with faulty_server(google.endpoint, keeps_host=False) as proxy:
        store = HttpStore(google.settings(endpoint=proxy.endpoint), timeouts=Timeouts(20, 2, 5))
        proxy.faults.append(Fault("POST", "uploadType=media", "flip a bit of the data"))
        store.put("key", DATA)
        assert store.get("key", max_bytes=len(DATA)).data == DATA


def test_a_token_is_signed_by_the_key_and_names_its_owner() -> None:
    key = service_account_key()
    token = GoogleIdentity(parse_key(key)).headers()["Authorization"].removeprefix("Bearer ")

    signed, _, signature = token.rpartition(".")
    header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
    private = load_pem_private_key(json.loads(key)["private_key"].encode(), None)
    assert isinstance(private, RSAPrivateKey)
    private.public_key().verify(_decoded(signature), signed.encode(), PKCS1v15(), SHA256())
    assert header == {"alg": "RS256", "typ": "JWT", "kid": "0123456789abcdef"}
    assert claims["iss"] == claims["sub"] == "training@tests.iam.gserviceaccount.com"
    assert claims["exp"] - claims["iat"] == 3600


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@pytest.fixture
def provider() -> Iterator[tuple[str, list[str]]]:
    """A server that gives tokens: its URL, and what it was asked."""
    asked: list[str] = []

    class Handler(QuietHandler):
        def handle_request(self) -> None:
            form = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            asked.append(f"{self.path} {form} {self.headers.get('Metadata-Flavor') or self.headers.get('Metadata')}")
            answer = json.dumps({"access_token": f"token-{len(asked)}", "expires_in": "3600"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with listening(Handler) as url:
        yield url, asked


def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "IDENTITY_ENDPOINT", "AZURE_CLIENT_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_pod_in_googles_cloud_gets_its_token_from_the_metadata_service(
    provider: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, asked = provider
    _no_variables(monkeypatch, tmp_path)
    monkeypatch.setenv("GCE_METADATA_HOST", url.removeprefix("http://"))
    identity = GoogleIdentity(None)

    assert [identity.headers() for _ in range(2)] == [{"Authorization": "Bearer token-1"}] * 2
    assert asked == ["/computeMetadata/v1/instance/service-accounts/default/token  Google"]


def test_a_users_own_login_at_google_is_renewed(
    provider: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, asked = provider
    _no_variables(monkeypatch, tmp_path)
    monkeypatch.setattr(google_identity, "_TOKEN_URL", url)
    (tmp_path / "login.json").write_text(
        json.dumps({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"})
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "login.json"))

    assert GoogleIdentity(None).headers() == {"Authorization": "Bearer token-1"}
    assert parse_qs(asked[0].split()[1])["grant_type"] == ["refresh_token"]


AZURE: dict[str, tuple[dict[str, str], Callable[[str], bool]]] = {
    "workload identity": (
        {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_FEDERATED_TOKEN_FILE": "FILE"},
        lambda asked: asked.startswith("/t/oauth2/v2.0/token") and "client_assertion=projected" in asked,
    ),
    "a client's secret": (
        {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_SECRET": "s"},
        lambda asked: "client_secret=s" in asked and "scope=https%3A%2F%2Fstorage.azure.com%2F.default" in asked,
    ),
    "an app's identity": ({"IDENTITY_ENDPOINT": "URL"}, lambda asked: "resource=https%3A%2F%2Fstorage" in asked),
    "a machine's identity": ({}, lambda asked: asked.endswith("true") and "api-version=2018-02-01" in asked),
}


@pytest.mark.parametrize("how", AZURE)
def test_azures_identities_are_found_in_the_environment(
    how: str, provider: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, asked = provider
    _no_variables(monkeypatch, tmp_path)
    variables, is_right = AZURE[how]
    (tmp_path / "token").write_text("projected\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("FILE", str(tmp_path / "token")).replace("URL", url))
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", url)
    monkeypatch.setattr(azure_identity, "_METADATA", f"{url}/metadata/identity/oauth2/token")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    seen: list[dict[str, Any]] = []

    class Handler(QuietHandler):
        def handle_request(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append(dict(self.headers))
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with listening(Handler) as account, pytest.raises(AccessDeniedError):
        open_store(StoreSettings("az://bucket/run", account)).put("key", b"data")

    assert len(asked) == 1
    assert is_right(asked[0]), asked
    assert seen[0]["Authorization"] == "Bearer token-1"
