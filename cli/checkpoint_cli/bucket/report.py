"""``report``: a run as one HTML page."""

from __future__ import annotations

from typing import Annotated

import typer

from checkpoint_cli.bucket.stores import CredentialsFolder, Endpoint, Region, store_at
from checkpoint_cli.options import PageFile


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="The run.")],
    file: PageFile = "",
    endpoint: Endpoint = "",
    region: Region = "",
    credentials_folder: CredentialsFolder = "",
) -> None:
    """Write one HTML page about a run: its steps over time, goodput, storage, metrics, and why snapshots are kept.

    The page contains everything it needs and opens without a network.

    Example: {program} report s3://training/llama-7b
    """
    from checkpoint_cli.report.file import write_report
    from checkpoint_sidecar.core.address import parse_address

    address = parse_address(url)
    if address.selector:
        raise typer.BadParameter(f"a report is about a whole run: leave out @{address.selector}.")
    name = address.url.rpartition("/")[2]
    write_report(store_at(address.url, endpoint, region, credentials_folder), file or f"{name}-report.html")
