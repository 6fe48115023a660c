"""From settings to a store: which adapter serves which URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.calls import DEFAULT_TIMEOUTS, Timeouts
from checkpoint_sidecar.store.fsspec.opening import is_foreign, with_filesystem

Driver: TypeAlias = Literal["auto", "native", "fsspec", "obstore"]


def open_store(
    settings: StoreSettings,
    *,
    driver: Driver = "auto",
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    on_page: Callable[[int], None] = lambda _: None,
) -> Store:
    """Open the store at ``settings.url``. No request is made: a wrong bucket or key shows at the first verb.

    Args:
        settings: The store's location and our identity.
        driver: ``native`` speaks the cloud's own protocol, ``fsspec`` goes through s3fs; ``auto`` is native, and
            ``obstore`` is its former name. Local files are served by the adapter for them under every driver. URLs of
            other schemes, and settings with a filesystem, are served through fsspec under every driver.
        timeouts: How long to wait for a store that does not answer.
        on_page: Called with the number of objects in each page of a listing. It may raise, to end a listing that does
            not end by itself.

    Raises:
        ConfigurationError: The URL, the credentials or the driver cannot work.
    """
    # Adapters are imported where they are opened: their clients take longer to import than most commands to run.
    if settings.filesystem is not None or is_foreign(settings.url):
        settings = with_filesystem(settings)
        if settings.filesystem is not None:
            from checkpoint_sidecar.store.fsspec.adapter import FsspecStore

            return FsspecStore(settings, timeouts=timeouts, on_page=on_page)
    scheme = parse_url(settings.url).scheme
    if scheme == "file":
        from checkpoint_sidecar.store.local.adapter import LocalStore

        return LocalStore(settings)
    if driver != "fsspec":
        from checkpoint_sidecar.store.http.adapter import HttpStore

        return HttpStore(settings, timeouts=timeouts, on_page=on_page)
    if scheme == "s3":
        return _s3fs_store(settings, timeouts, on_page)
    raise ConfigurationError(
        "open the store",
        settings.url,
        f"the fsspec driver does not serve {scheme}",
        "Use the driver native, or pass a filesystem object.",
    )


def _s3fs_store(settings: StoreSettings, timeouts: Timeouts, on_page: Callable[[int], None]) -> Store:
    try:
        from checkpoint_sidecar.store.s3.s3fs_adapter import S3fsStore
    except ImportError as error:
        raise ConfigurationError(
            "open the store",
            settings.url,
            f"the fsspec driver needs s3fs, and the module {error.name} is missing",
            "Run: pip install 'checkpoint-operator[s3fs]'",
        ) from error
    return S3fsStore(settings, timeouts=timeouts, on_page=on_page)
