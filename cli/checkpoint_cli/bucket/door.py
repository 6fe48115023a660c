"""The arguments that all verbs of the bucket door share: an address, and how to reach its store."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from checkpoint_cli.bucket.stores import CredentialsFolder, Endpoint, Region, store_at
from checkpoint_cli.signatures import with_parameters

if TYPE_CHECKING:
    from checkpoint_sidecar.core.run import Snapshot
    from checkpoint_sidecar.manage.stored_run import StoredRun
    from checkpoint_sidecar.store.base import Store

Address = Annotated[str, typer.Argument(metavar="URL[@SELECTOR]", help="The run, and perhaps a snapshot of it.")]
_OPTIONS = {"endpoint": Endpoint, "region": Region, "credentials_folder": CredentialsFolder}


@dataclass(frozen=True)
class AddressedRun:
    """A run in a bucket, and the snapshot that is meant. Nothing is read before it is used.

    Attributes:
        selector: ``latest``, ``best``, a step, an id or the start of one; empty if only the run was named.
    """

    url: str
    selector: str
    endpoint: str = ""
    region: str = ""
    credentials_folder: str = ""

    @cached_property
    def store(self) -> Store:
        """The store, opened at the run."""
        return store_at(self.url, self.endpoint, self.region, self.credentials_folder)

    @cached_property
    def run(self) -> StoredRun:
        """The run."""
        from importlib.metadata import version

        from checkpoint_sidecar.manage.stored_run import StoredRun

        return StoredRun(self.store, writer=f"checkpoint {version('checkpoint-operator')}")

    def snapshot(self) -> Snapshot:
        """Return the snapshot that the selector means; without one, the latest."""
        return self.run.find(self.selector or "latest")

    def with_selector(self, selector: str) -> AddressedRun:
        """Return the same run with another selector."""
        return AddressedRun(self.url, selector, self.endpoint, self.region, self.credentials_folder)


def of_whole_run(function: Callable[..., None]) -> Callable[..., None]:
    """Do as ``of_run`` does, and refuse a selector."""

    @functools.wraps(function)
    def checked(*, at: AddressedRun, **own: Any) -> None:
        if at.selector:
            raise typer.BadParameter(f"this is about a whole run: leave out @{at.selector}.")
        function(at=at, **own)

    return of_run(checked)


def of_run(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb ``URL[@SELECTOR]`` and the options of a store; it gets them as ``at``."""

    def run(address: str, endpoint: str, region: str, credentials_folder: str, **own: Any) -> None:
        from checkpoint_sidecar.core.address import parse_address

        parsed = parse_address(address)
        function(at=AddressedRun(parsed.url, parsed.selector, endpoint, region, credentials_folder), **own)

    return with_parameters(function, run, made={"at"}, arguments={"address": Address}, options=_OPTIONS)
