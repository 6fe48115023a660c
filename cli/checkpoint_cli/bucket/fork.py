"""``fork`` of the bucket door: a new run that begins at a snapshot of another one."""

from __future__ import annotations

from typing import Annotated

import typer

from checkpoint_cli.bucket.door import AddressedRun, of_run
from checkpoint_cli.options import DryRun, Output, Part
from checkpoint_cli.output import OutputFormat


@of_run
def fork(
    at: AddressedRun,
    url: Annotated[str, typer.Argument(metavar="NEW_URL", help="Where the new run is to be, in the same store.")],
    part: Part = "",
    run: Annotated[str, typer.Option("--run", help="Name of the new run; default: the end of its URL.")] = "",
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Let a new run begin at a snapshot of another one. Copies nothing: its first start loads the snapshot.

    A Checkpointer at the new URL needs no start_from then. Hold the snapshot until the new run has a commit of its own.

    Example: {program} fork s3://training/llama-7b@best s3://training/llama-7b-fork
    """
    from checkpoint_cli import views
    from checkpoint_cli.records import ChangeRecord
    from checkpoint_sidecar.core.address import parse_address
    from checkpoint_sidecar.manage.forking import fork_run

    if parse_address(url).selector:
        raise typer.BadParameter("a new run has no snapshots: leave out what follows the @.")
    new = AddressedRun(url, "", at.endpoint, at.region, at.credentials_folder)
    change = fork_run(at.run, new.run, selector=at.selector, part=part, run=run, dry_run=dry_run)
    step = at.run.find(change.snapshot).step
    what = f"{part} of step {step}, at step 0" if part else f"step {step}"
    verb = "would begin" if dry_run else "begins" if change.done else "begins already"
    text = f"The new run {new.url} {verb} with {what} ({change.snapshot})."
    if at.run.policy.retention is not None and change.done:
        text += f" Hold it meanwhile: checkpoint hold {at.url}@{change.snapshot}"
    record = ChangeRecord(
        verb="fork", run=new.url, snapshot=change.snapshot, request="", done=change.done and not dry_run, text=text
    )
    views.show_change(record, output)
