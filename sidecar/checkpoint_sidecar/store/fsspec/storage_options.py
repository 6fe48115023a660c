"""Converts fsspec's storage options, as existing code passes them, to settings that open a store."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from checkpoint_sidecar.core.environment import AddressingStyle
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import OBJECT_SCHEMES, parse_url
from checkpoint_sidecar.store import access as keys
from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings
from checkpoint_sidecar.store.fsspec import misdirected
from checkpoint_sidecar.store.fsspec.opening import is_foreign, with_filesystem

_CREDENTIALS: dict[str, dict[str, str]] = {
    "s3": {
        "key": keys.AWS_ACCESS_KEY_ID,
        "secret": keys.AWS_SECRET_ACCESS_KEY,
        "token": keys.AWS_SESSION_TOKEN,
    },
    "gs": {"token": keys.GOOGLE_APPLICATION_CREDENTIALS_JSON},
    "az": {
        "account_name": keys.AZURE_STORAGE_ACCOUNT_NAME,
        "account_key": keys.AZURE_STORAGE_ACCOUNT_KEY,
        "sas_token": keys.AZURE_STORAGE_SAS_TOKEN,
    },
}
# They tune buffers, caches and connections of fsspec's file objects, which are not used here.
_TUNING = frozenset(
    {
        "asynchronous",
        "auto_mkdir",
        "block_size",
        "cache_regions",
        "default_block_size",
        "default_cache_type",
        "default_fill_cache",
        "fixed_upload_size",
        "listings_expiry_time",
        "loop",
        "max_concurrency",
        "project",
        "skip_instance_cache",
        "use_listings_cache",
    }
)
_CONNECTING = frozenset({"connect_timeout", "max_pool_connections", "read_timeout", "retries", "tcp_keepalive"})
"""Options of botocore's configuration that only tune its connections and retries."""
_ALIASES = {"gcs://": "gs://", "s3a://": "s3://"}
SCHEMES = frozenset({"file", *OBJECT_SCHEMES, *(alias.removesuffix("://") for alias in _ALIASES)})
"""Schemes of the URLs that are accepted."""
_STYLES: dict[str, AddressingStyle] = {"auto": "Auto", "path": "Path", "virtual": "Virtual"}


def settings_from(
    url: str | StoreSettings, *, filesystem: Any = None, storage_options: Mapping[str, Any] | None = None
) -> StoreSettings:
    """Return the settings of a store from the arguments that public functions share.

    Args:
        url: A URL, or settings; then only a filesystem may be added.
        filesystem, storage_options: See ``settings_of``.

    Raises:
        ConfigurationError, StoreError: See ``settings_of``; or settings and storage options were both passed.
    """
    options = storage_options or {}
    if isinstance(url, str):
        return settings_of(url, options, filesystem) if options or filesystem is not None else StoreSettings(url)
    if options:
        raise ConfigurationError(
            "open the run", url.url, "settings and storage_options were both passed", "Pass one of the two."
        )
    return url if filesystem is None else replace(url, filesystem=filesystem)


def settings_of(path: str | os.PathLike[str], options: Mapping[str, Any], filesystem: Any = None) -> StoreSettings:
    """Return the settings for a path and fsspec's keyword arguments.

    Args:
        path: A URL, or a local path.
        options: For S3: ``key``, ``secret``, ``token``, ``endpoint_url``, ``client_kwargs`` (``endpoint_url``,
            ``region_name``), ``config_kwargs`` (``s3.addressing_style``), ``requester_pays``, ``s3_additional_kwargs``
            (``ServerSideEncryption``, ``SSEKMSKeyId``, ``Tagging``); for Google Cloud Storage ``token`` (a service
            account, as a dictionary or a file); for Azure ``account_name``, ``account_key``, ``sas_token``. For URLs
            of other schemes, the options of their filesystem.
        filesystem: An fsspec filesystem that serves the path. It has its options already, so ``options`` is empty.

    Raises:
        ConfigurationError: An option would be ignored although it matters, or the URL is not allowed.
        StoreError: The filesystem of another scheme could not connect.
    """
    if filesystem is not None:
        if options:
            raise ConfigurationError(
                "open the store",
                os.fspath(path),
                f"the storage option {next(iter(options))} has no effect on a filesystem object",
                "Pass it when you create the filesystem.",
            )
        return with_filesystem(StoreSettings(os.fspath(path), filesystem=filesystem))
    if _is_foreign(os.fspath(path)):
        return with_filesystem(StoreSettings(os.fspath(path)), options)
    if "://" not in os.fspath(path):
        misdirected.check(path, "open the store")
    url = _url(os.fspath(path))
    location = parse_url(url)
    rest = {name: value for name, value in options.items() if name not in _TUNING and value is not None}
    credentials = _take_credentials(rest, _CREDENTIALS.get(location.scheme, {}))
    client = dict(rest.pop("client_kwargs", {}))
    endpoint = rest.pop("endpoint_url", "") or client.pop("endpoint_url", "") or _ambient_endpoint(location.scheme)
    region = client.pop("region_name", "") or _ambient_region(location.scheme)
    config = {name: value for name, value in dict(rest.pop("config_kwargs", {})).items() if name not in _CONNECTING}
    addressing = dict(config.pop("s3", {}))
    style = addressing.pop("addressing_style", "auto")
    requester_pays = bool(rest.pop("requester_pays", False))
    written = dict(rest.pop("s3_additional_kwargs", {})) if location.scheme == "s3" else {}
    encryption, key = str(written.pop("ServerSideEncryption", "")), str(written.pop("SSEKMSKeyId", ""))
    tags = tuple(sorted(parse_qsl(str(written.pop("Tagging", "")), keep_blank_values=True)))
    rest |= {f"s3_additional_kwargs.{name}": value for name, value in written.items()}
    rest |= {f"config_kwargs.{name}": value for name, value in config.items()}
    rest |= {f"config_kwargs.s3.{name}": value for name, value in addressing.items()}
    unknown = [*rest, *(f"client_kwargs.{name}" for name in client)]
    if unknown or style not in _STYLES:
        raise ConfigurationError(
            "open the store",
            location.url,
            f"the storage option {unknown[0] if unknown else 'config_kwargs.s3.addressing_style'} is not supported",
            "Leave it out, or set it in the environment or the configuration file of the store's client.",
        )
    return StoreSettings(
        location.url, endpoint, region, _STYLES[style], credentials, encryption, key, requester_pays, tags
    )


def _is_foreign(path: str) -> bool:
    return not path.startswith(tuple(_ALIASES)) and is_foreign(path)


def _url(path: str) -> str:
    if "://" not in path:
        return os.path.abspath(path)
    for alias, scheme in _ALIASES.items():
        if path.startswith(alias):
            return scheme + path.removeprefix(alias)
    return path


def _ambient_endpoint(scheme: str) -> str:
    """Return the endpoint that botocore, and with it s3fs, falls back to."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if scheme == "s3" else ()
    return next((value for name in names if (value := os.environ.get(name))), "")


def _ambient_region(scheme: str) -> str:
    """Return the region that botocore falls back to: the caller expects it, because s3fs would read it too."""
    names = ("AWS_REGION", "AWS_DEFAULT_REGION") if scheme == "s3" else ()
    return next((value for name in names if (value := os.environ.get(name))), "")


def _take_credentials(options: dict[str, Any], names: Mapping[str, str]) -> Credentials:
    given = {secret_key: _text(options.pop(name)) for name, secret_key in names.items() if name in options}
    return Credentials.of(given) if given else AMBIENT


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(value)
    text = str(value)
    return Path(text).read_text() if text.endswith(".json") else text
