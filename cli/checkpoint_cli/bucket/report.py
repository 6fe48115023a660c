"""``report``: a run as one HTML page."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from checkpoint_cli.bucket.stores import CredentialsFolder, Endpoint, Region, store_at


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="The run.")],
    file: Annotated[str, typer.Option("--file", "-f", help="Where to write the page; - for standard output.")] = "",
    endpoint: Endpoint = "",
    region: Region = "",
    credentials_folder: CredentialsFolder = "",
) -> None:
    """Write one HTML page about a run: its steps over time, goodput, storage, metrics, and why snapshots are kept.

    The page contains everything it needs and opens without a network. By default it is written to <run>-report.html.

    Example: {program} report s3://training/llama-7b
    """
    from checkpoint_cli.address import parse_address
    from checkpoint_cli.output import write
    from checkpoint_cli.report.draw.page import render
    from checkpoint_cli.report.gather import gather
    from checkpoint_cli.report.view import report_of
    from checkpoint_sidecar.core.errors import RunNotFoundError

    address = parse_address(url)
    if address.selector:
        raise typer.BadParameter(f"a report is about a whole run: leave out @{address.selector}.")
    facts = gather(store_at(address.url, endpoint, region, credentials_folder))
    if not facts.entries:
        raise RunNotFoundError(
            "write a report of the run", address.url, "there is no run log below it", "Check the URL."
        )
    page = render(report_of(facts))
    if file == "-":
        sys.stdout.write(page)
        return
    path = Path(file or f"{address.url.rpartition('/')[2]}-report.html")
    _write(path, page)
    write(f"Wrote {path}")


def _write(path: Path, page: str) -> None:
    """Write the page under its name only when it is complete."""
    from checkpoint_cli.exits import CommandRefusedError, ExitStatus

    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        cause = error.strerror or str(error)
        raise CommandRefusedError(
            "write the report", str(path), cause, "Choose another place with --file.", status=ExitStatus.USAGE
        ) from error
    finally:
        partial.unlink(missing_ok=True)
