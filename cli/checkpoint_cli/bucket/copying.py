"""``copy`` and ``republish`` of the bucket door: runs at another place.

``copy`` makes a run of its own of snapshots. ``republish`` is for a run that other programs have moved as it is.
"""

from __future__ import annotations

from typing import Annotated

import typer

from checkpoint_cli.bucket.changing import WithoutOperator
from checkpoint_cli.bucket.door import AddressedRun, of_run, of_whole_run
from checkpoint_cli.options import DryRun, Output
from checkpoint_cli.output import OutputFormat


@of_run
def copy(
    at: AddressedRun,
    to: Annotated[str, typer.Argument(metavar="URL", help="Where to: nothing yet, or an earlier copy of the run.")],
    to_endpoint: Annotated[
        str, typer.Option("--to-endpoint", help="Base URL of the other service; default: the same.")
    ] = "",
    to_region: Annotated[str, typer.Option("--to-region", help="Region of the other bucket; default: the same.")] = "",
    to_credentials_folder: Annotated[
        str, typer.Option("--to-credentials-folder", help="Credentials of the other store; default: the same.")
    ] = "",
    without_operator: WithoutOperator = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Copy one snapshot, or all that a restore of the run may try, to another store or prefix: a run of its own.

    Every byte is compared with its checksum. After an interruption, run it again: it continues.

    Example: {program} copy s3://training/llama-7b@best gs://backup/llama-7b
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.convert import snapshot_records
    from checkpoint_cli.bucket.reading import findings
    from checkpoint_cli.progress import bytes_bar
    from checkpoint_cli.records import SnapshotRecords
    from checkpoint_sidecar.core.location import parse_url
    from checkpoint_sidecar.manage.copying import CopySettings, copy_run, plan_copy

    alike = parse_url(at.url).scheme == parse_url(to).scheme
    other = AddressedRun(
        parse_url(to).url,
        "",
        to_endpoint or (at.endpoint if alike else ""),
        to_region or (at.region if alike else ""),
        to_credentials_folder or (at.credentials_folder if alike else ""),
    )
    planned = plan_copy(at.run, other.run, at.selector)
    if dry_run or not planned:
        found = findings(at)
        records = SnapshotRecords(run=at.url, items=snapshot_records(found, planned))
        views.show_snapshots(records, output, found.now, empty=f"{other.url} has all of that already.")
        return
    with bytes_bar("copying", sum(each.commit.bytes for each in planned)) as advance:
        settings = CopySettings(progress=advance, without_operator=without_operator)
        copies = list(copy_run(at.run, other.run, at.selector, settings=settings))
    found = findings(other)
    views.show_snapshots(SnapshotRecords(run=other.url, items=snapshot_records(found, copies)), output, found.now)


@of_whole_run
def republish(at: AddressedRun, dry_run: DryRun = False, output: Output = OutputFormat.TABLE) -> None:
    """Let torch's own reader find shared files again in a run that was moved, or copied by other means than copy.

    Prints the snapshots whose step-N/.metadata had to be written. Only save.unchanged: Share makes such snapshots.

    Example: {program} republish s3://elsewhere/llama-7b
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.convert import snapshot_records
    from checkpoint_cli.bucket.reading import findings
    from checkpoint_cli.records import SnapshotRecords

    written = at.run.republish(dry_run=dry_run)
    found = findings(at)
    records = SnapshotRecords(run=at.url, items=snapshot_records(found, written))
    empty = f"torch's own reader finds all shared files of {at.url}."
    views.show_snapshots(records, output, found.now, empty=empty)
