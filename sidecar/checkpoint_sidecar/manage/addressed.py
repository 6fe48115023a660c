"""Opens the run that a caller names, in one of the ways that Python functions accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoint_sidecar.core.address import parse_address
from checkpoint_sidecar.manage.stored_run import StoredRun, open_run
from checkpoint_sidecar.store.access import StoreSettings


def open_addressed(
    url: str | StoreSettings | StoredRun,
    selector: str | int = "",
    *,
    filesystem: Any = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[StoredRun, str | int]:
    """Return a run, and the selector of one of its snapshots; empty if there is none.

    Args:
        url: A URL, which may end with ``@<selector>``; or settings, or a run.
        selector: Used instead of that of ``url``.
        filesystem, storage_options: See ``open_run``.

    Raises:
        ConfigurationError: The URL is invalid.
    """
    if isinstance(url, StoredRun):
        return url, selector
    if isinstance(url, str):
        address = parse_address(url)
        url, selector = address.url, selector if selector != "" else address.selector
    return open_run(url, filesystem=filesystem, storage_options=storage_options), selector
