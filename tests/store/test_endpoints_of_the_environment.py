"""Endpoints, proxies and clients that fail: what is asked where, and what the error says of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint_sidecar.conformance import __main__ as conformance
from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.conformance.promises import CHECKS
from checkpoint_sidecar.core.errors import ConfigurationError, RequestRefusedError, StoreError, UnknownOutcomeError
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.common.calls import Calls, Timeouts
from checkpoint_sidecar.store.http.certificates import trust
from checkpoint_sidecar.store.opening import Driver, open_store
from doubles.proxies import QuietHandler, listening
from emulators.servers import Emulator
from support.s3servers import REGION, Server

drivers = pytest.mark.parametrize("driver", ["native", "fsspec"])
HASTY = Timeouts(deadline_seconds=0.2, answer_seconds=2.0)
KEYS = Credentials.of({"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"})


@pytest.mark.store
@drivers
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_address_in_the_environment_is_asked_with_the_bucket_in_the_path_and_quietly(
    driver: Driver,
    variable: str,
    moto: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in moto.credentials.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(variable, moto.endpoint)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    caplog.set_level(logging.INFO)

    probe(open_store(StoreSettings(moto.settings().url, region=REGION), driver=driver))

    assert [record for record in caplog.records if "credentials" in record.getMessage()] == []


@drivers
def test_an_endpoint_that_cannot_be_reached_is_named_with_its_port(driver: Driver) -> None:
    store = open_store(
        StoreSettings("s3://bucket/run", "http://127.0.0.1:9", REGION, credentials=KEYS), driver=driver, timeouts=HASTY
    )
    with pytest.raises(StoreError, match=r"no connection to 127\.0\.0\.1:9 \("):
        store.put("key", b"data")


@drivers
def test_an_answer_of_a_proxy_is_not_told_as_the_stores(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(QuietHandler):
        def handle_request(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(502)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_CONNECT = handle_request  # noqa: N815 - names of http.server

    with listening(Handler) as url:
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("HTTPS_PROXY", url)
        proxy = url.removeprefix("http://")
        for scheme, told in (("http", f"the proxy {proxy}, or the store behind it, answered 502"), ("https", "proxy")):
            endpoint = f"{scheme}://store.invalid:9000"
            store = open_store(
                StoreSettings("s3://bucket/run", endpoint, REGION, credentials=KEYS), driver=driver, timeouts=HASTY
            )
            with pytest.raises(StoreError) as raised:
                store.get("key", max_bytes=10)
            if driver == "native":
                assert told in str(raised.value)
                assert scheme == "http" or f"store.invalid:9000 through the proxy {proxy}" in str(raised.value)


def test_clients_that_trust_the_same_share_what_that_takes(tmp_path: Path) -> None:
    assert trust("", "s3://one") is trust("", "s3://two")
    with pytest.raises(ConfigurationError, match="the certificates cannot be read"):
        trust(str(tmp_path / "missing"), "s3://one")


class PanicException(BaseException):
    """As a client in Rust raises it."""


@pytest.mark.parametrize(
    ("call", "kind"), [("run", RequestRefusedError), ("write", UnknownOutcomeError), ("create", UnknownOutcomeError)]
)
@pytest.mark.parametrize("failure", [PanicException("key"), ValueError("key"), RecursionError()], ids=repr)
def test_whatever_a_client_raises_becomes_an_error_of_ours(
    call: str, kind: type[StoreError], failure: BaseException
) -> None:
    def fail(_: object) -> None:
        raise failure

    settings = StoreSettings("s3://bucket/run", credentials=KEYS)
    calls = Calls(settings, connect=lambda _: object(), errors=(), explain=lambda _: None, timeouts=HASTY)  # type: ignore[arg-type,return-value]

    with pytest.raises(kind, match=type(failure).__name__) as raised:
        getattr(calls, call)("do", "it", fail)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_no_error_of_a_client(failure: type[BaseException]) -> None:
    def fail(_: object) -> None:
        raise failure

    settings = StoreSettings("s3://bucket/run", credentials=KEYS)
    calls = Calls(settings, connect=lambda _: object(), errors=(), explain=lambda _: None, timeouts=HASTY)  # type: ignore[arg-type,return-value]

    with pytest.raises(failure):
        calls.run("do", "it", fail)


@pytest.fixture(params=["google", "azure"])
def cloud(request: pytest.FixtureRequest) -> Emulator:
    emulator: Emulator = request.getfixturevalue(request.param)
    return emulator


@pytest.mark.store
def test_the_command_finds_that_the_clouds_keep_every_promise(
    cloud: Emulator, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap: Callable[[str], bool] = lambda promise: "1,101" not in promise and "concurrent" not in promise  # noqa: E731
    monkeypatch.setattr(conformance, "CHECKS", tuple(c for c in CHECKS if cheap(c.promise)))
    for key, value in cloud.credentials.items():
        (tmp_path / key).write_text(value)
    arguments = [cloud.settings().url, "--endpoint", cloud.endpoint, "--credentials-folder", str(tmp_path)]

    assert conformance.main(arguments) == 0, capsys.readouterr()
    assert "through HttpStore" in capsys.readouterr().out
