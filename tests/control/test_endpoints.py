"""Which servers the operator may be sent to, decided from names, addresses and the administrator's list."""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_operator.gather.endpoint_rules import Endpoint, Pattern, refusal
from checkpoint_operator.gather.endpoints import check_servers
from checkpoint_operator.gather.run_store import Rules, StorageFaultError
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from support.admission import Namespace, checkpoint
from support.operators import OperatorProcess, Watched

PUBLIC = "203.0.113.7"
API_SERVER = "10.96.0.1"


def decide(endpoint: str, *addresses: str, allowed: tuple[str, ...] = ()) -> str:
    return refusal(
        Endpoint.parse(endpoint),
        [ipaddress.ip_address(address) for address in addresses],
        allowed=[Pattern.parse(text) for text in allowed],
        api_server=API_SERVER,
    )


@pytest.mark.parametrize(
    "address",
    [PUBLIC, "10.0.0.8", "192.168.1.2", "fd12:3456::1", "2001:db8::1", "64:ff9b::cb00:7107"],
)
def test_by_default_any_store_is_allowed_also_inside_the_cluster(address: str) -> None:
    assert decide("https://s3.internal:9000", address) == ""


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("169.254.169.254", "identity"),
        ("169.254.170.2", "identity"),
        ("fe80::1", "identity"),
        ("fd00:ec2::254", "identity"),
        ("fd00:ec2::23", "identity"),
        ("fd20:ce::254", "identity"),
        ("100.100.100.200", "identity"),
        ("168.63.129.16", "identity"),
        ("192.0.0.192", "identity"),
        ("127.0.0.1", "own host"),
        ("127.96.0.1", "own host"),
        ("::1", "own host"),
        ("0.0.0.0", "own host"),
        ("::", "own host"),
        ("224.0.0.1", "multicast"),
        (API_SERVER, "own API"),
        ("::ffff:169.254.169.254", "identity"),
        ("::ffff:127.0.0.1", "own host"),
        ("64:ff9b::a9fe:a9fe", "identity"),
        ("2002:7f00:1::", "own host"),
    ],
)
@pytest.mark.parametrize("allowed", [(), ("*",), ("https://*.example.com",)], ids=["no list", "all", "a domain"])
def test_what_is_never_a_store_is_refused_whatever_name_leads_there(
    address: str, what: str, allowed: tuple[str, ...]
) -> None:
    assert what in decide("https://innocent.example.com", address, allowed=allowed)
    assert what in decide("https://innocent.example.com", PUBLIC, address, allowed=allowed)


@pytest.mark.parametrize(
    "url", ["http://metadata.google.internal", "http://METADATA.google.internal.", "http://metadata:80"]
)
def test_metadata_is_refused_by_name_even_where_the_name_does_not_resolve(url: str) -> None:
    assert "identity" in decide(url)


@pytest.mark.parametrize(
    ("pattern", "endpoint"),
    [
        ("s3.internal", "https://s3.internal:9000"),
        ("https://s3.internal", "https://s3.internal:9000"),
        ("https://s3.internal:9000", "https://s3.internal:9000/"),
        ("https://s3.internal", "https://S3.Internal."),
        ("s3.internal:443", "https://s3.internal"),
        ("*.example.com", "http://a.b.example.com"),
        ("https://*", "https://anything:8443"),
        ("[2001:db8::1]:9000", "http://[2001:DB8::1]:9000"),
    ],
)
def test_what_the_list_names_is_allowed(pattern: str, endpoint: str) -> None:
    assert decide(endpoint, PUBLIC, allowed=("elsewhere", pattern)) == ""


@pytest.mark.parametrize(
    ("pattern", "endpoint"),
    [
        ("s3.internal", "https://s3.internal.evil.com"),
        ("s3.internal", "https://evil-s3.internal"),
        ("https://s3.internal", "http://s3.internal"),
        ("s3.internal:443", "http://s3.internal"),
        ("*.example.com", "https://example.com"),
        ("*.example.com", "https://evilexample.com"),
        ("https://*", "http://anything"),
    ],
)
def test_what_the_list_does_not_name_is_refused(pattern: str, endpoint: str) -> None:
    assert "administrator" in decide(endpoint, PUBLIC, allowed=(pattern,))


@pytest.mark.parametrize("pattern", ["127.0.0.1", "http://127.0.0.1:9000"])
def test_a_pattern_that_names_the_host_lifts_every_guard(pattern: str) -> None:
    assert decide("http://127.0.0.1:9000", "127.0.0.1", allowed=(pattern,)) == ""


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "https://",
        "https://user@host",
        "https://host/path",
        "https://host?x",
        r"https://evil.com\.s3.internal",
        "https://s3.internal%2eevil.com",
        "https://ho st",
        "https://mañana.example",
        "https://host:port",
        "//host",
        "http://host:0",
        "http://host:65536",
    ],
)
def test_what_parsers_may_read_differently_is_no_endpoint(url: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        Endpoint.parse(url)


@pytest.mark.parametrize("text", ["", "ftp://host", "host/path", "a.*.com", "*com", "host:x", "http://"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        Pattern.parse(text)


hosts = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
endpoints = st.builds(Endpoint, st.sampled_from(["http", "https"]), hosts, st.integers(1, 65535))
patterns = st.builds(
    Pattern,
    st.sampled_from(["", "http", "https"]),
    hosts | hosts.map("*.{}".format) | st.just("*"),
    st.none() | st.integers(1, 65535),
)
addresses = st.lists(st.ip_addresses(), max_size=4)


@given(endpoints)
def test_an_endpoint_is_read_back_as_it_is_shown(endpoint: Endpoint) -> None:
    assert Endpoint.parse(str(endpoint)) == endpoint


@given(endpoints, addresses, st.lists(patterns, min_size=1, max_size=4))
def test_a_list_never_allows_what_it_does_not_cover(
    endpoint: Endpoint, leads_to: list[ipaddress.IPv4Address | ipaddress.IPv6Address], allowed: list[Pattern]
) -> None:
    if not refusal(endpoint, leads_to, allowed=allowed):
        assert any(pattern.covers(endpoint) for pattern in allowed)


@given(endpoints, addresses, addresses, st.lists(patterns.filter(lambda p: not p.names_one_host), max_size=4))
def test_leading_to_more_addresses_never_helps(
    endpoint: Endpoint,
    some: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
    more: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
    allowed: list[Pattern],
) -> None:
    if refusal(endpoint, some, allowed=allowed):
        assert refusal(endpoint, [*some, *more], allowed=allowed)


# Settings: everything in them that names a server

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
GOOGLE = json.dumps({"private_key": "x", "gcs_base_url": "http://169.254.169.254"})
UNREADABLE = {
    "a key that is none": "no",
    "a key that is a list": f"[{GOOGLE}]",
    "a key with a number of 5,000 digits": GOOGLE.replace('"x"', "1" * 5000),
    "a key that is nested deeply": GOOGLE.replace('"x"', "[" * 20_000 + "]" * 20_000),
    "a key with a server twice": GOOGLE.replace("{", '{"gcs_base_url": "",'),
    "a key with a server that is no text": json.dumps({"gcs_base_url": ["http://169.254.169.254"]}),
    "a key that is long": json.dumps({"gcs_base_url": "http://169.254.169.254", "x": "y" * 100_000}),
}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param(StoreSettings("s3://b/run", "http://127.0.0.1:1"), "EndpointNotAllowed", id="an address"),
        pytest.param(StoreSettings("s3://b/run", "http://localhost"), "EndpointNotAllowed", id="a name"),
        pytest.param(StoreSettings("s3://b/run", "http://2130706433"), "EndpointNotAllowed", id="a number"),
        pytest.param(StoreSettings("s3://b/run", "http://0x7f.1"), "EndpointNotAllowed", id="an old notation"),
        pytest.param(StoreSettings("s3://b/run", "http://[::ffff:7f00:1]"), "EndpointNotAllowed", id="mapped"),
        pytest.param(
            StoreSettings("s3://127.0.0/run", "http://1", addressing_style="Virtual"),
            "EndpointNotAllowed",
            id="a bucket that completes an address",
        ),
        pytest.param(
            StoreSettings("gs://b/run", credentials=Credentials.of({"GOOGLE_APPLICATION_CREDENTIALS_JSON": GOOGLE})),
            "EndpointNotAllowed",
            id="a server in Google's key",
        ),
        *(
            pytest.param(
                StoreSettings("gs://b/run", credentials=Credentials.of({"GOOGLE_APPLICATION_CREDENTIALS_JSON": key})),
                "InvalidCredentials",
                id=name,
            )
            for name, key in UNREADABLE.items()
        ),
        pytest.param(
            StoreSettings("az://b/run", credentials=Credentials.of({"AZURE_STORAGE_ACCOUNT_NAME": "evil.com/x"})),
            "InvalidCredentials",
            id="a server in Azure's account",
        ),
        pytest.param(StoreSettings("s3://b/run", "https://a b"), "InvalidSpec", id="no endpoint"),
    ],
)
def test_settings_that_lead_astray_are_refused(settings: StoreSettings, reason: str) -> None:
    with pytest.raises(StorageFaultError) as caught:
        check_servers(settings, Rules())
    assert caught.value.fault.reason == reason


@pytest.mark.parametrize(
    "settings",
    [
        StoreSettings("s3://bucket/run", credentials=Credentials.of(KEYS)),
        StoreSettings("file:///data/run"),
        StoreSettings("az://bucket/run", credentials=Credentials.of({"AZURE_STORAGE_ACCOUNT_NAME": "account1"})),
        StoreSettings("s3://bucket/run", f"https://{PUBLIC}", credentials=Credentials.of(KEYS)),
        # Where a proxy resolves names, this host cannot.
        StoreSettings("s3://bucket/run", "https://no-such-host.invalid", credentials=Credentials.of(KEYS)),
        StoreSettings("s3://bucket/run", "https://no..name", credentials=Credentials.of(KEYS)),
    ],
    ids=[
        "no endpoint",
        "no server",
        "an account",
        "a public address",
        "an unknown name",
        "no name",
    ],
)
def test_settings_that_lead_to_stores_pass(settings: StoreSettings) -> None:
    check_servers(settings, Rules())


# The operator itself


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A server that the operator must never connect to: its URL, and the clients that connected."""
    knocks: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            knocks.append(str(self.client_address))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", knocks
        server.shutdown()
        thread.join()


@pytest.mark.api
def test_the_operator_never_connects_to_an_endpoint_that_is_not_allowed(
    namespace: Namespace,
    start_operator: Callable[..., OperatorProcess],
    secret: str,
    listener: tuple[str, list[str]],
) -> None:
    url, knocks = listener
    port = url.rpartition(":")[2]
    endpoints = {"address": url, "name": f"http://localhost:{port}", "number": f"http://2130706433:{port}"}
    start_operator("--endpoint-allow=*")
    for name, endpoint in endpoints.items():
        storage = {"url": f"s3://bucket/{name}", "endpoint": endpoint, "credentialsSecret": {"name": secret}}
        namespace.create(checkpoint(name, storage=storage))
    for name in endpoints:
        run = Watched(namespace, name)
        refused = run.becomes("StorageAvailable", "False", "EndpointNotAllowed", within=90)
        assert "the operator's own host" in refused["message"]
        assert run.condition("Stalled")["status"] == "True"
    assert knocks == []
    # The listener works: it hears a connection of the test itself.
    with socket.create_connection(("127.0.0.1", int(port))):
        pass
    namespace.patch("checkpoints", "address", {"spec": {"storage": {"region": "elsewhere"}}})
    Watched(namespace, "address").eventually(lambda it: it.status.get("observedGeneration") == 2)
    assert len(knocks) == 1
