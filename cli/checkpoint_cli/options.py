"""Options that several verbs share."""

from __future__ import annotations

import datetime as dt
import secrets
from typing import Annotated

import typer

from checkpoint_cli.output import OutputFormat
from checkpoint_cli.words import parse_duration


def _duration(text: str) -> str:
    try:
        parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Format of the output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]
Part = Annotated[
    str, typer.Option("--part", help="Load this object of the state only, such as model; the others start fresh.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Timeout = Annotated[
    str, typer.Option("--timeout", callback=_duration, help="Give up after this time, with status 1: 90s, 15m, 1h30m.")
]
"""Checked already: ``words.parse_duration`` reads it."""
Everything = Annotated[bool, typer.Option("--all", "-a", help="Also list what cannot be restored any more.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the save is committed.")]
FromStep = Annotated[int | None, typer.Option("--step", min=0, help="Wait for a snapshot of this or a later step.")]
Verified = Annotated[bool, typer.Option("--verified", help="Also wait until its stored bytes are verified.")]
UntilStep = Annotated[int | None, typer.Option("--until-step", min=1, help="Estimate when training reaches this step.")]
Quarantine = Annotated[
    bool, typer.Option("--quarantine", help="Discard the evidence against it, so that restores try it again.")
]
PageFile = Annotated[
    str,
    typer.Option("--file", "-f", help="Where to write the page; default: <run>-report.html, - for standard output."),
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")]


def new_request(verb: str) -> str:
    """Return a fresh id for a request, which each run serves once: ``cli-save-20260101T120000-1f2e3d``."""
    return f"cli-{verb}-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
