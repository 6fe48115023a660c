"""The identity without explicit credentials: botocore's chain, for small requests and for large ones."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import botocore.credentials
import pytest

from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.core.errors import AccessDeniedError, ConfigurationError
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.store.common.ranges import read_range
from checkpoint_sidecar.store.opening import Driver, open_store
from support.s3servers import REGION, SMALLEST_PART, Route, Server

pytestmark = pytest.mark.store

drivers = pytest.mark.parametrize("driver", ["fsspec", "native"], ids=["s3fs", "native"])

AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without any identity."""
    for name in AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def use(store: Store) -> None:
    probe(store)
    data = bytes(SMALLEST_PART + 1)
    write_object(store, "object", data)
    assert read_range(store, "object", 0, len(data)) == data


@drivers
def test_a_profile_names_identity_region_and_endpoint(
    driver: Driver, seaweed: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text(
        f"[training]\naws_access_key_id = {seaweed.access_key}\naws_secret_access_key = {seaweed.secret_key}\n"
    )
    (tmp_path / "config").write_text(f"[profile training]\nregion = {REGION}\nendpoint_url = {seaweed.endpoint}\n")
    monkeypatch.setenv("AWS_PROFILE", "training")

    use(open_store(StoreSettings(seaweed.settings().url, addressing_style="Path"), driver=driver))


@drivers
def test_a_web_identity_is_exchanged_and_renewed_before_it_expires(
    driver: Driver, route: Route, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if route.server.name != "moto":
        pytest.skip("only moto exchanges identities")
    (tmp_path / "token").write_text("issued by the cluster")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/training")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", route.server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    store = open_store(StoreSettings(route.server.settings().url, route.proxy.endpoint), driver=driver)

    use(store)

    first = set(route.proxy.tokens)
    assert len(first) == (2 if driver == "fsspec" else 1), "large requests are signed with the role's temporary keys"
    expire_soon(monkeypatch)
    use(store)
    assert route.proxy.tokens - first


def expire_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an hour look short, to code that holds credentials and to the cache behind it."""
    now = botocore.credentials._local_now
    monkeypatch.setattr(botocore.credentials, "_local_now", lambda: now() + dt.timedelta(minutes=50))
    monkeypatch.setattr(botocore.credentials.RefreshableCredentials, "_advisory_refresh_timeout", 2 * 3600)


@drivers
def test_a_missing_identity_is_reported(driver: Driver, seaweed: Server) -> None:
    store = open_store(StoreSettings(seaweed.settings().url, seaweed.endpoint, REGION), driver=driver)

    for request in (lambda: store.stat("object"), lambda: read_range(store, "object", 0, 1)):
        with pytest.raises(AccessDeniedError, match="no usable credentials were found"):
            request()


def test_a_profile_that_does_not_exist_is_reported(seaweed: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "misspelt")
    store = open_store(StoreSettings(seaweed.settings().url, seaweed.endpoint, REGION), driver="native")

    with pytest.raises(ConfigurationError, match=r"ProfileNotFound.*AWS_PROFILE"):
        store.stat("object")
