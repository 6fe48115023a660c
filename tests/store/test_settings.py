"""Credentials: read when needed, refused when incomplete, never shown. And which store serves which URL."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings, redacted
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import Driver, open_store

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA-id", "AWS_SECRET_ACCESS_KEY": "hunter2"}


def mount(folder: Path, values: dict[str, str], version: str) -> None:
    """Write a Secret the way the kubelet does: a folder of its own, and a link that is swapped."""
    data = folder / version
    data.mkdir(parents=True)
    for key, value in values.items():
        (data / key).write_text(value)
        if not (folder / key).is_symlink():
            (folder / key).symlink_to(Path("..data", key))
    link = folder / "..data_tmp"
    link.symlink_to(version)
    link.replace(folder / "..data")


def test_given_values_are_returned_and_unknown_keys_are_ignored() -> None:
    assert Credentials.of(KEYS | {"README": "hello"}).read() == KEYS


def test_a_mounted_secret_is_read_again_after_it_rotates(tmp_path: Path) -> None:
    mount(tmp_path, KEYS | {"tls.key": "not ours"}, "..1")
    credentials = Credentials.in_folder(tmp_path)
    assert credentials.read() == KEYS

    mount(tmp_path, KEYS | {"AWS_SECRET_ACCESS_KEY": "rotated\n"}, "..2")

    assert credentials.read()["AWS_SECRET_ACCESS_KEY"] == "rotated"


def test_a_plain_folder_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("PEM")

    assert Credentials.in_folder(tmp_path).read() == {"ca.crt": "PEM"}


def test_a_missing_folder_is_a_configuration_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        Credentials.in_folder(tmp_path / "nowhere").read()


@pytest.mark.parametrize(
    ("scheme", "values", "missing"),
    [
        ("s3", {}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3", {"AWS_ACCESS_KEY_ID": "x"}, "AWS_SECRET_ACCESS_KEY"),
        ("s3", {"ca.crt": "PEM"}, "AWS_ACCESS_KEY_ID"),
        ("gs", KEYS, "GOOGLE_APPLICATION_CREDENTIALS_JSON"),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "x"}, "AZURE_STORAGE_SAS_TOKEN"),
    ],
)
def test_incomplete_credentials_never_fall_back_to_the_ambient_identity(
    scheme: str, values: dict[str, str], missing: str
) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        Credentials.of(values).read_for(scheme)


@pytest.mark.parametrize(
    ("scheme", "values"),
    [
        ("s3", KEYS),
        ("gs", {"GOOGLE_APPLICATION_CREDENTIALS_JSON": "{}"}),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "x", "AZURE_STORAGE_ACCOUNT_KEY": "y"}),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "x", "AZURE_STORAGE_SAS_TOKEN": "y"}),
    ],
)
def test_complete_credentials_are_accepted(scheme: str, values: dict[str, str]) -> None:
    assert Credentials.of(values).read_for(scheme) == values


@pytest.mark.parametrize("key", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("text", ["a\nb", "a\r\nX-Header: b", "a b", "a\x00b", "clé", "键", "", "a\x7f"], ids=ascii)
def test_a_value_that_no_header_may_have_is_refused_without_being_shown(key: str, text: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"{key}: it is empty or has characters that an HTTP header cannot hold"
    ) as raised:
        Credentials.of(KEYS | {key: text}).read_for("s3")
    assert not text or text not in str(raised.value)


def test_the_ambient_identity_needs_no_values() -> None:
    assert AMBIENT.ambient
    assert AMBIENT.read_for("s3") == {}


@pytest.mark.parametrize("text", [repr, str, "{}".format, "{!r}".format])
def test_no_secret_is_shown(text: Callable[[object], str]) -> None:
    settings = StoreSettings("s3://bucket/run", credentials=Credentials.of(KEYS))
    stores: list[Store] = [open_store(settings, driver=driver) for driver in ("fsspec", "native")]

    for shown in (settings, settings.credentials, *stores):
        assert "hunter2" not in text(shown)
        assert "AKIA-id" not in text(shown)


@pytest.mark.parametrize(
    ("values", "text", "shown"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "abc/def+ghi"}, "the key abc/def+ghi is bad", "the key *** is bad"),
        ({"AWS_SECRET_ACCESS_KEY": "abc"}, 'bad: "abc"', 'bad: "***"'),
        ({"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=0123456789"}, "no such part: sig=0123456789", "no such part: ***"),
        (
            {"GOOGLE_APPLICATION_CREDENTIALS_JSON": '{"a": ["deep\\nsecret"]}'},
            "bad line: deep\nsecret",
            "bad line: ***",
        ),
        ({"ca.crt": "certificate"}, "a bad certificate", "a bad certificate"),
        ({}, "nothing to hide", "nothing to hide"),
    ],
    ids=["whole", "short", "a part", "in a document", "a certificate is public", "ambient"],
)
def test_words_of_a_client_are_shown_without_the_credentials_in_them(
    values: dict[str, str], text: str, shown: str
) -> None:
    assert redacted(text, values) == shown


def test_settings_survive_pickling() -> None:
    for credentials in (AMBIENT, Credentials.of(KEYS), Credentials.in_folder("/run/secret")):
        settings = StoreSettings("s3://bucket/run", "https://s3.internal", credentials=credentials)
        assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("url", "driver", "adapter"),
    [
        ("s3://bucket/run", "auto", "HttpStore"),
        ("s3://bucket/run", "native", "HttpStore"),
        ("s3://bucket/run", "obstore", "HttpStore"),
        ("s3://bucket/run", "fsspec", "S3fsStore"),
        ("gs://bucket/run", "auto", "HttpStore"),
        ("az://bucket/run", "auto", "HttpStore"),
        ("file:///mnt/run", "auto", "LocalStore"),
        ("/mnt/run", "fsspec", "LocalStore"),
    ],
)
def test_each_url_is_served_by_its_adapter(url: str, driver: Driver, adapter: str) -> None:
    store = open_store(StoreSettings(url), driver=driver)

    assert type(store).__name__ == adapter
    assert isinstance(store, Store)


@pytest.mark.parametrize(
    ("url", "driver", "cause"),
    [
        ("gs://bucket/run", "fsspec", "does not serve gs"),
        ("az://bucket/run", "fsspec", "does not serve az"),
        ("gopher://host/run", "auto", "scheme gopher is unknown"),
    ],
)
def test_an_unserved_url_is_a_configuration_error(url: str, driver: Driver, cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        open_store(StoreSettings(url), driver=driver)


def test_clients_are_imported_only_when_a_store_is_opened() -> None:
    program = (
        "import sys, checkpoint_sidecar.store.opening, checkpoint_sidecar.runs.log;"
        "import checkpoint_sidecar.conformance.probe;"
        "print([name for name in ('s3fs', 'fsspec', 'botocore', 'aiohttp', 'cryptography') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_driver_fsspec_without_its_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules, "checkpoint_sidecar.store.s3.s3fs_adapter", raising=False)

    with pytest.raises(ConfigurationError, match=r"Run: pip install 'checkpoint-operator\[s3fs\]'"):
        open_store(StoreSettings("s3://bucket/run"), driver="fsspec")
