"""``doctor`` of the bucket door: can a run be kept here, and is this one in order?"""

from __future__ import annotations

from typing import Annotated

import typer

from checkpoint_cli.bucket.door import AddressedRun, of_whole_run
from checkpoint_cli.options import Output
from checkpoint_cli.output import OutputFormat


@of_whole_run
def doctor(
    at: AddressedRun,
    read_only: Annotated[bool, typer.Option("--read-only", help="Write no trial objects: check the run only.")] = False,
    every_promise: Annotated[
        bool, typer.Option("--all-promises", help="Check every promise of the store; writes 150 MB for a while.")
    ] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Check the store (promises, rights, clock), the run in it, and the versions here.

    Trial objects are written below <url>/_conformance/ and deleted again, unless --read-only is given.

    Example: {program} doctor s3://training/llama-7b
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.checks import clock, promises, run_checks
    from checkpoint_cli.exits import ExitStatus
    from checkpoint_cli.records import CheckRecord, ReportRecord
    from checkpoint_cli.versions import versions

    checks = [*versions(), CheckRecord(check="endpoint", result="ok", detail=at.endpoint or "the provider's own")]
    if not read_only:
        checks += promises(at, every_promise)
        checks += clock(at)
    checks += run_checks(at)
    views.show_report(ReportRecord(subject=at.url, items=tuple(checks)), output)
    if any(each.result == "problem" for each in checks):
        raise typer.Exit(ExitStatus.PROBLEM)
