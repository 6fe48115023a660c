"""Versions of the installed packages, for ``doctor`` and for support archives."""

from __future__ import annotations

from collections.abc import Iterator

from checkpoint_cli.records import CheckRecord

_PACKAGES = ("checkpoint-operator", "torch", "botocore", "fsspec", "msgspec")


def versions() -> Iterator[CheckRecord]:
    """Yield the versions of the installed packages."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    yield CheckRecord(check="versions", result="ok", detail=", ".join(found))
