"""``rm`` of the bucket door: deletes named snapshots at once."""

from __future__ import annotations

from typing import Annotated

import typer

from checkpoint_cli.bucket.changing import WithoutOperator, named
from checkpoint_cli.bucket.door import AddressedRun, of_run
from checkpoint_cli.options import DryRun, Output, Yes
from checkpoint_cli.output import OutputFormat


@of_run
def rm(
    at: AddressedRun,
    others: Annotated[
        list[str] | None, typer.Argument(metavar="[SELECTOR]...", help="Further snapshots of the run.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also delete a held snapshot, and the newest one that a start can trust.")
    ] = False,
    yes: Yes = False,
    without_operator: WithoutOperator = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Delete snapshots at once, whatever the policy says, without a grace period. This cannot be undone.

    What an attempt or a pending rollback needs is never deleted. After a failure, run it again: it continues.

    Example: {program} rm s3://training/llama-7b@900 1000 1100 --yes
    """
    from checkpoint_cli import views
    from checkpoint_cli.asking import confirm
    from checkpoint_cli.bucket.convert import snapshot_records
    from checkpoint_cli.bucket.reading import findings
    from checkpoint_cli.records import SnapshotRecords
    from checkpoint_sidecar.core.purging import effect_of
    from checkpoint_sidecar.core.units import size

    selectors = [named(at, "remove"), *(each.removeprefix("@") for each in others or ())]
    snapshots = list({each.id: each for each in map(at.run.find, selectors)}.values())
    options = {"force": force, "without_operator": without_operator}
    for each in snapshots:
        at.run.remove(each.id, dry_run=True, **options)
    if not dry_run:
        total = size(effect_of(at.run.state, [each.id for each in snapshots]).bytes)
        steps = ", ".join(str(each.step) for each in snapshots)
        confirm("remove", at.url, f"This deletes the data of step {steps} of {at.url} for good, {total}", yes=yes)
        for each in snapshots:
            at.run.remove(each.id, **options)
    found = findings(at)
    shown = [found.run.snapshots[each.id] for each in snapshots]
    views.show_snapshots(SnapshotRecords(run=at.url, items=snapshot_records(found, shown)), output, found.now)
