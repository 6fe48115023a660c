"""Turns a URL with storage options, or a filesystem object, into settings that open a store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from checkpoint_sidecar.core.errors import ConfigurationError, RequestRefusedError
from checkpoint_sidecar.core.location import OBJECT_SCHEMES
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.fsspec.faults import explain_filesystem

OWN_SCHEMES = frozenset({"file", *OBJECT_SCHEMES})
"""Schemes of the URLs that are served without fsspec."""

_OPEN = "open the store"
_PASSWORD = re.compile(r"(://[^/@:]*):[^/@]*@")


def without_password(url: str) -> str:
    """Return the URL as errors show it."""
    return _PASSWORD.sub(r"\1@", url)


def is_foreign(url: str) -> bool:
    """Whether a URL has a scheme that only fsspec may serve."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme not in OWN_SCHEMES


def can_serve(url: str) -> bool:
    """Whether fsspec knows the scheme of a URL; makes no request and imports no filesystem."""
    from fsspec import available_protocols

    return "::" not in url and url.partition("://")[0] in available_protocols()


def with_filesystem(settings: StoreSettings, options: Mapping[str, Any] = {}) -> StoreSettings:
    """Create the filesystem of a URL, if the settings have none, and unwrap known wrappers.

    Args:
        options: fsspec's storage options, as ``fsspec.filesystem`` takes them.

    Returns:
        Settings with a filesystem; those of a local filesystem have a ``file://`` URL instead.

    Raises:
        ConfigurationError: fsspec does not know the scheme, or a package is missing, or the filesystem cannot hold a
            run.
        StoreError: The filesystem could not connect.
    """
    import fsspec
    from fsspec.implementations.cached import CachingFileSystem
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    shown = without_password(settings.url)
    if "::" in settings.url:
        raise ConfigurationError(_OPEN, shown, "chained URLs (::) are not supported", "Use the last URL of the chain.")
    fs, path = settings.filesystem, settings.url
    if fs is None:
        fs, path = _made(settings.url, shown, options)
    if not isinstance(fs, fsspec.AbstractFileSystem):
        raise ConfigurationError(
            _OPEN,
            shown,
            f"{type(fs).__name__} is not an fsspec filesystem",
            "Pass a filesystem that fsspec.filesystem(...) returns, or one with the same interface.",
        )
    path = str(fs._strip_protocol(path))
    while isinstance(fs, DirFileSystem):
        fs, path = fs.fs, fs._join(path)
        shown = ""
    if isinstance(fs, CachingFileSystem):
        raise ConfigurationError(
            _OPEN,
            shown,
            f"{type(fs).__name__} answers from a cache, so this process would not see what others write",
            "Pass the filesystem behind it.",
        )
    if isinstance(fs, LocalFileSystem):
        return StoreSettings(f"file://{path}")
    url = shown if "://" in shown else fs.unstrip_protocol(path)
    return replace(settings, url=url.rstrip("/"), filesystem=fs)


def _made(url: str, shown: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0]
    if not can_serve(url):
        raise ConfigurationError(
            _OPEN,
            shown,
            f"the scheme {scheme} is unknown",
            "Use s3://, gs://, az://, file:// or a scheme that fsspec serves, or pass a filesystem object.",
        )
    try:
        fs, path = url_to_fs(url, **{**options, "skip_instance_cache": True})
    except ImportError as error:
        known = known_implementations.get(scheme, {}).get("err", "")
        hint = known or f"Install the package that has {error.name}."
        raise ConfigurationError(_OPEN, shown, f"a package for {scheme}:// URLs is missing", hint) from error
    except Exception as error:  # noqa: BLE001 - each filesystem has its own
        fault = explain_filesystem(error)
    else:
        return fs, path
    # Raised outside the handler: the exception may quote secrets and must not hang on ours.
    kind = ConfigurationError if fault.kind is RequestRefusedError else fault.kind
    raise kind(_OPEN, shown, fault.cause, fault.hint)
