"""Writes the report of a run to a file, whole or not at all."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.output import write
from checkpoint_cli.report.draw.page import render
from checkpoint_cli.report.gather import gather
from checkpoint_cli.report.view import report_of
from checkpoint_sidecar.core.errors import RunNotFoundError
from checkpoint_sidecar.store.base import Store


def write_report(store: Store, file: str) -> None:
    """Write the report of the run in a store.

    Args:
        file: Path of the page; ``-`` for standard output.

    Raises:
        RunNotFoundError: There is no run.
        CommandRefusedError: The file cannot be written.
        LogError: The log cannot be read.
        StoreError: The store failed.
    """
    facts = gather(store)
    if not facts.entries:
        cause = "there is no run log below it"
        raise RunNotFoundError("write a report of the run", store.url, cause, "Check the URL.")
    page = render(report_of(facts))
    if file == "-":
        sys.stdout.write(page)
        return
    path = Path(file)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        cause = error.strerror or str(error)
        raise CommandRefusedError(
            "write the report", file, cause, "Choose another place with --file.", status=ExitStatus.USAGE
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    write(f"Wrote {path}")
