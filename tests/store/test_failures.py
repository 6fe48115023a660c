"""What the adapters make of refusals: by the network, the store and the credentials. Behind them are real servers.

What becomes of faults that pass is in ``test_faults``.
"""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ConfigurationError,
    DeletionRefusedError,
    NoConditionalWriteError,
    RequestRefusedError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.store.common.ranges import read_range
from checkpoint_sidecar.store.http.adapter import HttpStore
from checkpoint_sidecar.store.opening import Driver, open_store
from checkpoint_sidecar.store.s3.s3fs_adapter import S3fsStore
from doubles.faulty_server import Effect, Fault, FaultyServer, faulty_server
from emulators.servers import service_account_key
from localcluster.pki import Authority
from support.s3servers import SMALLEST_PART, Route, Server

ALWAYS = 10_000
SOON = Timeouts(deadline_seconds=0.1, answer_seconds=1)

pytestmark = pytest.mark.store


@pytest.fixture
def server(route: Route) -> FaultyServer:
    if route.server.name != "moto":
        pytest.skip("the server would refuse requests that were changed on the way")
    return route.proxy


@pytest.fixture
def store(route: Route, server: FaultyServer) -> S3fsStore | HttpStore:
    """An adapter that reaches moto through the faults."""
    return route.patient


@pytest.fixture
def key(folder: str) -> str:
    return f"{folder}_log/00000000000000000007.json"


USES: dict[str, Callable[[Store, str], object]] = {
    "put": lambda store, key: store.put(key, b"data"),
    "put_if_absent": lambda store, key: store.put_if_absent(key, b"data"),
    "get": lambda store, key: store.get(key, max_bytes=100),
    "read_into": lambda store, key: read_range(store, key, 0, 1),
    "stat": lambda store, key: store.stat(key),
    "list": lambda store, key: list(store.list(key)),
    "delete": lambda store, key: store.delete([key]),
    "upload": lambda store, key: upload(store, key, parts=1),
}
drivers = pytest.mark.parametrize("driver", ["fsspec", "native"])
adapters = pytest.mark.parametrize("adapter", [S3fsStore, HttpStore], ids=["s3fs", "native"])


def upload(store: Store, key: str, *, parts: int) -> None:
    write_object(store, key, bytes(parts * SMALLEST_PART))


@pytest.mark.parametrize("effect", ["lose the reply", (500, "InternalError"), "reset the connection"], ids=str)
def test_a_create_that_may_have_reached_the_store_is_sent_once(
    store: Store, server: FaultyServer, key: str, effect: Effect
) -> None:
    server.faults.append(Fault("PUT", key, effect))

    with pytest.raises(UnknownOutcomeError):
        store.put_if_absent(key, b"data")

    assert server.count("PUT", key) == 1
    assert (store.stat(key) is not None) == (effect == "lose the reply")


@pytest.mark.parametrize("use", ["get", "stat"])
def test_small_reads_are_repeated_until_the_deadline(use: str, route: Route, server: FaultyServer, key: str) -> None:
    route.patient.put(key, b"data")
    server.faults += [Fault(method, key, (503, "SlowDown"), times=2) for method in ("GET", "HEAD")]
    assert USES[use](route.patient, key)

    server.faults += [Fault(method, key, (503, "SlowDown"), times=ALWAYS) for method in ("GET", "HEAD")]
    with pytest.raises(StoreError, match=r"SlowDown|503") as raised:
        USES[use](route.hasty, key)
    assert raised.value.retryable


def test_a_small_read_that_is_cut_short_is_repeated(store: Store, server: FaultyServer, key: str) -> None:
    store.put(key, bytes(range(256)) * 4)
    server.faults.append(Fault("GET", key, "cut the reply"))

    assert store.get(key, max_bytes=2000).data == bytes(range(256)) * 4


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch"])
@pytest.mark.parametrize("use", USES)
def test_a_refused_identity_is_access_denied_at_once_and_quotes_no_secret(
    code: str, use: str, store: Store, moto: Server, server: FaultyServer, key: str
) -> None:
    server.faults += [Fault(method, "", (403, code), times=ALWAYS) for method in ("GET", "HEAD", "PUT", "POST")]

    with pytest.raises(AccessDeniedError) as raised:
        USES[use](store, key)

    assert len(server.seen) == 1
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
    assert moto.secret_key not in shown
    assert moto.access_key not in shown


def test_a_wrong_clock_is_named(store: Store, server: FaultyServer, key: str) -> None:
    server.faults.append(Fault("PUT", key, (403, "RequestTimeTooSkewed"), times=ALWAYS))

    with pytest.raises(AccessDeniedError, match="Set this machine's clock"):
        store.put(key, b"data")


def test_a_server_that_is_no_object_store_is_suspected_of_it(store: Store, server: FaultyServer) -> None:
    server.faults.append(Fault("GET", "", (404, ""), times=ALWAYS))
    with pytest.raises(StoreError, match="check that the endpoint is an object store's"):
        list(store.list())


def test_a_missing_bucket_is_named_as_such(s3: tuple[Server, Driver]) -> None:
    server, driver = s3
    missing = open_store(server.settings(bucket="no-such-bucket-anywhere"), driver=driver)

    for use in USES:
        if server.name == "seaweedfs" and ("put" in use or use == "upload"):
            continue  # it creates the bucket for an administrator
        with pytest.raises(BucketNotFoundError, match="no-such-bucket-anywhere"):
            USES[use](missing, "key")


@drivers
@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_access_denied(wrong: str, driver: Driver, seaweed: Server) -> None:
    credentials = Credentials.of(seaweed.credentials | {wrong: "WRONG"})
    store = open_store(seaweed.settings(credentials=credentials), driver=driver)

    for use in USES.values():
        with pytest.raises(AccessDeniedError):
            use(store, "key")


@drivers
def test_rotated_credentials_are_picked_up_when_access_is_denied(
    driver: Driver, seaweed: Server, tmp_path: Path
) -> None:
    for key in seaweed.credentials:
        (tmp_path / key).write_text("expired")
    store = open_store(seaweed.settings(credentials=Credentials.in_folder(tmp_path)), driver=driver)
    with pytest.raises(AccessDeniedError):
        store.put_if_absent("key", b"data")

    for key, value in seaweed.credentials.items():
        (tmp_path / key).write_text(value)

    store.put_if_absent("key", b"data")
    assert store.get("key", max_bytes=10).data == b"data"


@drivers
def test_the_jobs_own_variables_do_not_mix_with_given_credentials(
    driver: Driver, seaweed: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the data set")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the data set")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of the data set")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = open_store(seaweed.settings(), driver=driver)

    probe(store)


@drivers
def test_the_ambient_identity_comes_from_the_environment(
    driver: Driver, seaweed: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    url = seaweed.settings().url

    probe(open_store(StoreSettings(url, seaweed.endpoint, "us-east-1"), driver=driver))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def private_server(moto: Server, authority: Authority) -> Iterator[FaultyServer]:
    """A server whose certificate only a private authority vouches for."""
    pair = authority.issue("store", user="store", hosts=("127.0.0.1",))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.certificate, pair.key)
    with faulty_server(moto.endpoint, tls=tls) as server:
        yield server


@adapters
def test_a_private_authority_is_trusted_when_its_certificate_is_among_the_credentials(
    adapter: type[S3fsStore | HttpStore], moto: Server, authority: Authority, private_server: FaultyServer
) -> None:
    trusting = Credentials.of(moto.credentials | {"ca.crt": "# Főtanúsítvány\n" + authority.certificate.read_text()})

    store = adapter(moto.settings(endpoint=private_server.endpoint, credentials=trusting))
    probe(store)
    upload(store, "object", parts=2)
    assert read_range(store, "object", 0, 2 * SMALLEST_PART) == bytes(2 * SMALLEST_PART)


@adapters
def test_an_unknown_authority_is_not_trusted(
    adapter: type[S3fsStore | HttpStore], moto: Server, private_server: FaultyServer
) -> None:
    with pytest.raises(StoreError, match="certificates"):
        probe(adapter(moto.settings(endpoint=private_server.endpoint), timeouts=SOON))
    with pytest.raises(StoreError, match="certificates"):
        read_range(adapter(moto.settings(endpoint=private_server.endpoint), timeouts=SOON), "object", 0, 1)


def test_a_store_that_cannot_be_reached_is_a_retryable_error(store: S3fsStore | HttpStore, moto: Server) -> None:
    dead = type(store)(moto.settings(endpoint="http://127.0.0.1:9"), timeouts=SOON)

    for use in USES.values():
        with pytest.raises(StoreError, match="no connection") as raised:
            use(dead, "key")
        assert type(raised.value) is StoreError
        assert raised.value.retryable


def test_the_probe_refuses_a_store_that_ignores_the_condition(store: Store, server: FaultyServer) -> None:
    server.faults.append(Fault("PUT", "_probe/", "drop the condition", times=ALWAYS))

    with pytest.raises(NoConditionalWriteError, match="replaced"):
        probe(store)
    assert list(store.list("_probe/")) == []


def test_the_probe_refuses_a_store_that_does_not_know_the_condition(store: Store, server: FaultyServer) -> None:
    server.faults.append(Fault("PUT", "_probe/", (501, "NotImplemented"), times=ALWAYS))

    with pytest.raises(NoConditionalWriteError):
        probe(store)


@pytest.mark.parametrize(
    ("method", "containing", "code", "error"),
    [
        ("PUT", "_probe/", "AccessDenied", AccessDeniedError),
        ("GET", "list-type", "AccessDenied", AccessDeniedError),
        ("POST", "delete", "AccessDenied", DeletionRefusedError),
        ("PUT", "_probe/", "PermanentRedirect", RequestRefusedError),
    ],
    ids=["may not write", "may not list", "may not delete", "wrong region"],
)
def test_the_probe_tells_what_is_not_allowed(
    store: Store, server: FaultyServer, method: str, containing: str, code: str, error: type[StoreError]
) -> None:
    server.faults.append(Fault(method, containing, (403 if code == "AccessDenied" else 301, code), times=ALWAYS))

    with pytest.raises(error):
        probe(store)


@pytest.mark.parametrize(
    ("method", "containing"),
    [("POST", "uploads"), ("PUT", "partNumber=1"), ("PUT", "partNumber=3"), ("POST", "uploadId=")],
    ids=["start", "first part", "last part", "completion"],
)
def test_an_upload_that_is_refused_leaves_nothing(
    store: Store, server: FaultyServer, moto: Server, key: str, method: str, containing: str
) -> None:
    server.faults.append(Fault(method, containing, (403, "AccessDenied"), times=ALWAYS))

    with pytest.raises(AccessDeniedError):
        upload(store, key, parts=3)

    assert store.stat(key) is None
    assert moto.open_uploads(f"{store.url}/{key}") == []


def test_an_interrupted_upload_leaves_no_parts(store: Store, moto: Server, key: str) -> None:
    def upload_and_fail() -> None:
        with store.upload(key, 3 * SMALLEST_PART) as writer:
            writer.write_part(0, [bytes(SMALLEST_PART)])
            assert moto.open_uploads(f"{store.url}/{key}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_and_fail()

    assert store.stat(key) is None
    assert moto.open_uploads(f"{store.url}/{key}") == []


def test_keys_that_could_not_be_deleted_are_an_error(store: Store, server: FaultyServer) -> None:
    server.faults.append(Fault("POST", "delete", (403, "AccessDenied"), times=ALWAYS))

    with pytest.raises(DeletionRefusedError, match="first and 2 others"):
        store.delete(["first", "second", "third"])


@pytest.mark.parametrize(
    ("url", "credentials", "cause"),
    [
        (
            "az://bucket/run",
            {"AZURE_STORAGE_ACCOUNT_NAME": "tenant", "AZURE_STORAGE_ACCOUNT_KEY": "secret-of-mine!"},
            "AZURE_STORAGE_ACCOUNT_KEY: it is not base64",
        ),
        (
            "az://bucket/run",
            {"AZURE_STORAGE_ACCOUNT_NAME": "tenant", "AZURE_STORAGE_SAS_TOKEN": "secret-of-mine"},
            "it is not a shared access signature",
        ),
        (
            "az://bucket/run",
            {"AZURE_STORAGE_ACCOUNT_NAME": "tenant", "AZURE_STORAGE_SAS_TOKEN": "sig=secret-of-mine&comp=list"},
            "it is not a shared access signature",
        ),
        (
            "az://bucket/run",
            {"AZURE_STORAGE_ACCOUNT_NAME": "evil.example/", "AZURE_STORAGE_SAS_TOKEN": "sig=secret-of-mine"},
            "AZURE_STORAGE_ACCOUNT_NAME: it does not have 3 to 24",
        ),
        ("gs://bucket/run", {"GOOGLE_APPLICATION_CREDENTIALS_JSON": '"a secret-of-mine"'}, "it is not a JSON object"),
        (
            "gs://bucket/run",
            {"GOOGLE_APPLICATION_CREDENTIALS_JSON": service_account_key(private_key="secret-of-mine")},
            "its private_key is not an RSA key in PEM",
        ),
        (
            "gs://bucket/run",
            {"GOOGLE_APPLICATION_CREDENTIALS_JSON": service_account_key(type="external_account")},
            'its type is not "service_account"',
        ),
        (
            "s3://bucket/run",
            {
                "AWS_ACCESS_KEY_ID": "secret-of-mine",
                "AWS_SECRET_ACCESS_KEY": "secret-of-mine",
                "ca.crt": "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----",
            },
            "the certificates cannot be read",
        ),
    ],
    ids=[
        *("account key", "SAS token", "SAS token with more", "account"),
        *("service account", "private key", "another type", "certificate"),
    ],
)
def test_credentials_that_make_no_client_are_explained_without_being_shown(
    url: str, credentials: dict[str, str], cause: str
) -> None:
    store = open_store(StoreSettings(url, credentials=Credentials.of(credentials)))

    with pytest.raises(ConfigurationError, match=cause) as raised:
        store.stat("key")

    assert "secret-of-mine" not in "".join(traceback.format_exception(raised.value))
