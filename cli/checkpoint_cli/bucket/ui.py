"""``ui``: reports served live on loopback."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_cli.bucket.stores import CredentialsFolder, Endpoint, Region, store_at
from checkpoint_cli.options import Port

if TYPE_CHECKING:
    from checkpoint_sidecar.store.base import Store

MAX_OBJECTS = 200_000
"""Number of objects below a URL after which the search for runs gives up."""


def command(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Runs, or folders and buckets that hold runs.")],
    port: Port = 0,
    endpoint: Endpoint = "",
    region: Region = "",
    credentials_folder: CredentialsFolder = "",
) -> None:
    """Show runs in a browser, live: a list of runs, the report of each, and its snapshots.

    It listens on 127.0.0.1 only, changes nothing, and ends with Ctrl-C. The printed address contains a secret: other
    users of the machine cannot open the pages without it.

    Example: {program} ui s3://training
    """
    from checkpoint_cli.ui.runs import SearchPlace
    from checkpoint_cli.ui.server import serve
    from checkpoint_sidecar.core.address import parse_address

    addresses = [parse_address(url) for url in urls]
    if selected := next((address for address in addresses if address.selector), None):
        raise typer.BadParameter(f"pages are about whole runs: leave out @{selected.selector}.")

    def opened(url: str) -> Store:
        return store_at(url, endpoint, region, credentials_folder)

    def searched(url: str) -> Store:
        return store_at(url, endpoint, region, credentials_folder, on_page=_limit(url))

    serve(lambda: [SearchPlace(address.url, opened, searched) for address in addresses], port=port)


def _limit(url: str) -> Callable[[int], None]:
    """Return a hook that ends a listing of too many objects."""
    from checkpoint_sidecar.core.errors import StoreError

    seen = 0

    def count(objects: int) -> None:
        nonlocal seen
        seen += objects
        if seen > MAX_OBJECTS:
            cause = f"it holds more than {MAX_OBJECTS:,} objects"
            raise StoreError("search for runs below", url, cause, "Name the folders that hold the runs.")

    return count
