"""What the adapters make of failures of the network, the store and the credentials. Behind them are real servers."""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    NoConditionalWriteError,
    ObjectExistsError,
    RequestRefusedError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.store import parts
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.fsspec_store import FsspecStore
from checkpoint_sidecar.store.obstore_store import ObstoreStore
from checkpoint_sidecar.store.opening import Driver, open_store
from checkpoint_sidecar.store.probe import probe
from checkpoint_sidecar.store.settings import Credentials, StoreSettings
from doubles.faulty_server import Fault, FaultyServer, faulty_server
from localcluster.pki import Authority
from s3servers import Server

KEY = "_log/00000000000000000007.json"
PART = 5 * 1024 * 1024

pytestmark = pytest.mark.store


@pytest.fixture
def server(moto: Server) -> Iterator[FaultyServer]:
    with faulty_server(moto.endpoint) as faulty:
        yield faulty


@pytest.fixture(params=[FsspecStore, ObstoreStore], ids=["s3fs", "obstore"])
def store(request: pytest.FixtureRequest, moto: Server, server: FaultyServer) -> Store:
    """An adapter that reaches the server through the faults."""
    opened: Store = request.param(moto.settings(endpoint=server.endpoint), deadline_seconds=3)
    return opened


USES: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put(KEY, b"data"),
    "put_if_absent": lambda store: store.put_if_absent(KEY, b"data"),
    "get": lambda store: store.get(KEY, max_bytes=100),
    "get_range": lambda store: store.get_range(KEY, 0, 1),
    "stat": lambda store: store.stat(KEY),
    "list": lambda store: list(store.list("_log/")),
    "delete": lambda store: store.delete([KEY]),
}
every_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


@pytest.mark.parametrize("effect", ["lose the reply", (500, "InternalError"), (503, "SlowDown")])
def test_a_create_that_may_have_reached_the_store_is_not_repeated(
    store: Store, server: FaultyServer, effect: object
) -> None:
    server.faults.append(Fault("PUT", KEY, effect))

    with pytest.raises(UnknownOutcomeError):
        store.put_if_absent(KEY, b"data")

    assert server.count("PUT", KEY) == 1
    assert (store.stat(KEY) is not None) == (effect == "lose the reply")


def test_a_conflict_that_proves_no_object_is_an_unknown_outcome(store: Store, server: FaultyServer) -> None:
    server.faults.append(Fault("PUT", KEY, (409, "ConditionalRequestConflict")))

    with pytest.raises(UnknownOutcomeError):
        store.put_if_absent(KEY, b"data")


def test_a_put_is_repeated_until_it_is_answered(store: Store, server: FaultyServer) -> None:
    server.faults += [Fault("PUT", KEY, "lose the reply"), Fault("PUT", KEY, (503, "SlowDown"))]

    store.put(KEY, b"data")

    assert store.get(KEY, max_bytes=10).data == b"data"


@every_use
def test_transient_answers_are_waited_out(
    use: Callable[[Store], object], store: Store, server: FaultyServer, request: pytest.FixtureRequest
) -> None:
    if "put_if_absent" in request.node.name:
        pytest.skip("is never repeated")
    store.put(KEY, b"data")
    server.faults += [
        Fault(method, "", effect)
        for method in ("GET", "HEAD", "PUT", "POST", "DELETE")
        for effect in ((503, "SlowDown"), (500, "InternalError"))
    ]

    use(store)


@pytest.mark.parametrize("use", [USES["get"], lambda store: store.get_range(KEY, 0, 1000)], ids=["get", "get_range"])
def test_a_truncated_answer_is_fetched_again(
    use: Callable[[Store], object], store: Store, server: FaultyServer
) -> None:
    data = bytes(range(256)) * 4
    store.put(KEY, data)
    server.faults += [Fault("GET", KEY, "cut the reply", times=2)]

    read = store.get_range(KEY, 0, 1000) if use is not USES["get"] else store.get(KEY, max_bytes=2000).data

    assert read == data[: len(read)]
    assert len(read) >= 1000


@every_use
def test_a_failure_that_lasts_is_raised_when_the_deadline_has_passed(
    use: Callable[[Store], object], store: Store, server: FaultyServer
) -> None:
    server.faults += [Fault(method, "", (503, "SlowDown"), times=1000) for method in ("GET", "HEAD", "PUT", "POST")]

    with pytest.raises(StoreError, match=r"SlowDown|503") as raised:
        use(store)
    assert raised.value.retryable


def test_a_listing_whose_second_page_fails_is_an_error_not_a_short_listing(
    store: Store, moto: Server, server: FaultyServer
) -> None:
    url, _ = moto.many_pages
    many = type(store)(moto.settings(url=url, endpoint=server.endpoint), deadline_seconds=1)
    server.faults.append(Fault("GET", "continuation-token", (503, "SlowDown"), times=1000))

    with pytest.raises(StoreError):
        list(many.list())


def test_a_listing_that_begins_late_costs_no_pages_of_what_comes_before(
    store: Store, moto: Server, server: FaultyServer
) -> None:
    url, keys = moto.many_pages
    many = type(store)(moto.settings(url=url, endpoint=server.endpoint))

    assert [info.key for info in many.list("_log/", after=keys[1050])] == keys[1051:]
    assert server.count("GET") == 1


@every_use
@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_a_refused_identity_is_access_denied_at_once_and_quotes_no_secret(
    code: str, use: Callable[[Store], object], store: Store, moto: Server, server: FaultyServer
) -> None:
    server.faults += [Fault(method, "", (403, code), times=1000) for method in ("GET", "HEAD", "PUT", "POST")]

    with pytest.raises(AccessDeniedError) as raised:
        use(store)

    assert len(server.seen) == 1
    shown = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
    assert moto.secret_key not in shown
    assert moto.access_key not in shown


@every_use
def test_a_missing_bucket_is_named_as_such(
    use: Callable[[Store], object], s3: tuple[Server, Driver], request: pytest.FixtureRequest
) -> None:
    server, driver = s3
    if server.name == "seaweedfs" and "put" in request.node.callspec.id:
        pytest.skip("SeaweedFS creates the bucket for an administrator")
    missing = open_store(server.settings(bucket="no-such-bucket-anywhere"), driver=driver)

    with pytest.raises(BucketNotFoundError, match="no-such-bucket-anywhere"):
        use(missing)


@every_use
@pytest.mark.parametrize("driver", ["fsspec", "obstore"])
@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_access_denied(
    wrong: str, driver: Driver, use: Callable[[Store], object], seaweed: Server
) -> None:
    credentials = Credentials.of(seaweed.credentials | {wrong: "WRONG"})
    store = open_store(seaweed.settings(credentials=credentials), driver=driver)

    with pytest.raises(AccessDeniedError):
        use(store)


@pytest.mark.parametrize("driver", ["fsspec", "obstore"])
def test_rotated_credentials_are_picked_up_when_access_is_denied(
    driver: Driver, seaweed: Server, tmp_path: Path
) -> None:
    for key in seaweed.credentials:
        (tmp_path / key).write_text("expired")
    store = open_store(seaweed.settings(credentials=Credentials.in_folder(tmp_path)), driver=driver)
    with pytest.raises(AccessDeniedError):
        store.put_if_absent(KEY, b"data")

    for key, value in seaweed.credentials.items():
        (tmp_path / key).write_text(value)

    store.put_if_absent(KEY, b"data")
    assert store.get(KEY, max_bytes=10).data == b"data"


@pytest.mark.parametrize("driver", ["fsspec", "obstore"])
def test_the_jobs_own_variables_do_not_mix_with_given_credentials(
    driver: Driver, seaweed: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the data set")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the data set")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of the data set")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = open_store(seaweed.settings(), driver=driver)

    probe(store)


@pytest.mark.parametrize("driver", ["fsspec", "obstore"])
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


@pytest.mark.parametrize("adapter", [FsspecStore, ObstoreStore], ids=["s3fs", "obstore"])
def test_a_private_authority_is_trusted_when_its_certificate_is_among_the_credentials(
    adapter: type[FsspecStore | ObstoreStore], moto: Server, authority: Authority, private_server: FaultyServer
) -> None:
    trusting = Credentials.of(moto.credentials | {"ca.crt": authority.certificate.read_text()})

    probe(adapter(moto.settings(endpoint=private_server.endpoint, credentials=trusting)))


@pytest.mark.parametrize("adapter", [FsspecStore, ObstoreStore], ids=["s3fs", "obstore"])
def test_an_unknown_authority_is_not_trusted(
    adapter: type[FsspecStore | ObstoreStore], moto: Server, private_server: FaultyServer
) -> None:
    with pytest.raises(StoreError, match="certificates"):
        probe(adapter(moto.settings(endpoint=private_server.endpoint), deadline_seconds=0.5))


def test_a_store_that_cannot_be_reached_is_a_retryable_error(store: Store, moto: Server) -> None:
    dead = type(store)(moto.settings(endpoint="http://127.0.0.1:9"), deadline_seconds=0.5)

    for use in USES.values():
        with pytest.raises(StoreError, match="no connection") as raised:
            use(dead)
        assert type(raised.value) is StoreError
        assert raised.value.retryable


def test_the_probe_refuses_a_store_that_ignores_the_condition(store: Store, server: FaultyServer) -> None:
    server.faults.append(Fault("PUT", "_probe/", "drop the condition", times=2))

    with pytest.raises(NoConditionalWriteError, match="replaced"):
        probe(store)
    assert list(store.list()) == []


def test_the_probe_refuses_a_store_that_does_not_know_the_condition(store: Store, server: FaultyServer) -> None:
    server.faults.append(Fault("PUT", "_probe/", (501, "NotImplemented")))

    with pytest.raises(NoConditionalWriteError):
        probe(store)


@pytest.mark.parametrize(
    ("method", "containing", "code", "error"),
    [
        ("PUT", "_probe/", "AccessDenied", AccessDeniedError),
        ("GET", "list-type", "AccessDenied", AccessDeniedError),
        ("POST", "delete", "AccessDenied", AccessDeniedError),
        ("PUT", "_probe/", "PermanentRedirect", RequestRefusedError),
    ],
    ids=["may not write", "may not list", "may not delete", "wrong region"],
)
def test_the_probe_tells_what_is_not_allowed(
    store: Store, server: FaultyServer, method: str, containing: str, code: str, error: type[StoreError]
) -> None:
    server.faults.append(Fault(method, containing, (403 if code == "AccessDenied" else 301, code), times=1000))

    with pytest.raises(error):
        probe(store)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PART)


def upload(store: Store, size: int = 4 * PART) -> None:
    with store.upload("big") as writer:
        for _ in range(size // PART):
            writer.write(bytes(PART))


def open_uploads(moto: Server, store: Store) -> list[str]:
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    uploads = moto.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return [upload["Key"] for upload in uploads if upload["Key"].startswith(prefix)]


@pytest.mark.usefixtures("small_parts")
def test_parts_are_repeated_after_transient_failures(store: Store, server: FaultyServer, moto: Server) -> None:
    server.faults += [
        Fault("PUT", "partNumber=2", (503, "SlowDown"), times=2),
        Fault("PUT", "partNumber=3", "lose the reply"),
    ]

    upload(store)

    assert store.stat("big").size == 4 * PART
    assert open_uploads(moto, store) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("method", "containing"),
    [("POST", "uploads"), ("PUT", "partNumber=1"), ("PUT", "partNumber=4"), ("POST", "uploadId=")],
    ids=["start", "first part", "last part", "completion"],
)
def test_an_upload_that_fails_leaves_nothing(
    store: Store, server: FaultyServer, moto: Server, method: str, containing: str
) -> None:
    server.faults.append(Fault(method, containing, (403, "AccessDenied"), times=1000))

    with pytest.raises(AccessDeniedError):
        upload(store)

    assert store.stat("big") is None
    assert open_uploads(moto, store) == []


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_upload_leaves_no_parts(store: Store, moto: Server) -> None:
    def upload_and_fail() -> None:
        with store.upload("big") as writer:
            for _ in range(4):
                writer.write(bytes(PART))
            assert open_uploads(moto, store)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_and_fail()

    assert store.stat("big") is None
    assert open_uploads(moto, store) == []


@pytest.mark.usefixtures("small_parts")
def test_a_lost_reply_to_the_completion_is_no_failure(store: Store, server: FaultyServer) -> None:
    server.faults.append(Fault("POST", "uploadId=", "lose the reply"))

    upload(store)

    assert store.stat("big").size == 4 * PART


def test_keys_that_could_not_be_deleted_are_an_error(store: Store, server: FaultyServer) -> None:
    server.faults.append(Fault("POST", "delete", (403, "AccessDenied"), times=1000))

    with pytest.raises(AccessDeniedError, match="first and 2 others"):
        store.delete(["first", "second", "third"])


def test_a_taken_key_is_told_apart_from_every_failure(store: Store) -> None:
    store.put_if_absent(KEY, b"data")

    with pytest.raises(ObjectExistsError):
        store.put_if_absent(KEY, b"data")
