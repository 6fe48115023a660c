"""``ls``, ``show``, ``status``, ``log``, ``wait`` and ``follow`` of the bucket door: they only read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_cli.bucket.door import AddressedRun, of_run, of_whole_run
from checkpoint_cli.options import Everything, FromStep, Output, Timeout, UntilStep, Verified
from checkpoint_cli.output import OutputFormat

if TYPE_CHECKING:
    from checkpoint_cli.bucket.convert import RunFindings
    from checkpoint_cli.records import EntryRecord
    from checkpoint_sidecar.core.log import StoredEntry
    from checkpoint_sidecar.core.run import Snapshot

_POLL_SECONDS = 2.0


def findings(at: AddressedRun, *, heartbeat: bool = False) -> RunFindings:
    """Read a run.

    Args:
        heartbeat: Whether to read how far training has got, too.
    """
    from checkpoint_cli.bucket.convert import RunFindings
    from checkpoint_cli.views import now
    from checkpoint_sidecar.runs.heartbeat import read_heartbeat

    run = at.run.refresh()
    found = read_heartbeat(at.store) if heartbeat else None
    return RunFindings(
        url=at.url,
        run=run,
        verdict=at.run.retention(),
        now=now(),
        heartbeat=found.heartbeat if found else None,
        heartbeat_at=found.at if found else None,
    )


@of_run
def ls(
    at: AddressedRun,
    everything: Everything = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the snapshots of a run, newest first.

    Example: {program} ls s3://training/llama-7b -o wide
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.convert import snapshot_records
    from checkpoint_cli.records import SnapshotRecords

    found = findings(at)
    snapshots = [at.snapshot()] if at.selector else at.run.snapshots(all=everything)
    views.show_snapshots(SnapshotRecords(run=at.url, items=snapshot_records(found, snapshots)), output, found.now)


@of_run
def show(at: AddressedRun, output: Output = OutputFormat.TABLE) -> None:
    """Show all that is known of one snapshot; without a selector, of the latest.

    Example: {program} show s3://training/llama-7b@best
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.convert import snapshot_records

    found = findings(at)
    views.show_snapshot(snapshot_records(found, [at.snapshot()])[0], output, found.now)


@of_whole_run
def status(
    at: AddressedRun,
    until_step: UntilStep = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show a run on one screen: health, progress, last and next save, lost work, what retention does next.

    Example: {program} status s3://training/llama-7b --until-step 100000
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.convert import run_record

    found = findings(at, heartbeat=True)
    views.show_run(run_record(found), output, found.now, until_step=until_step)


@of_whole_run
def log(
    at: AddressedRun,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for further entries.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Tell the story of a run, across attempts, from its log: oldest first.

    Example: {program} log s3://training/llama-7b -f
    """
    from checkpoint_cli import views
    from checkpoint_cli.records import EntryRecords

    at.run.refresh()
    if output in (OutputFormat.JSON, OutputFormat.YAML) and not follow:
        records = tuple(_entry_record(at, entry) for entry in at.run.entries())
        views.show_entries(EntryRecords(run=at.url, items=records), output)
        return
    last = 0
    while True:
        for entry in at.run.entries(after=last):
            views.show_entry(_entry_record(at, entry), output)
            last = entry.number
        if not follow:
            return
        views.flush()
        time.sleep(_POLL_SECONDS)
        at.run.refresh()


def _entry_record(at: AddressedRun, entry: StoredEntry) -> EntryRecord:
    import msgspec

    from checkpoint_cli.records import EntryRecord
    from checkpoint_cli.sentences import sentence
    from checkpoint_cli.words import rfc3339
    from checkpoint_sidecar.core.log import Unknown

    body = entry.body
    return EntryRecord(
        number=entry.number,
        time=rfc3339(entry.stored_at) or "",
        event=body.kind if isinstance(body, Unknown) else type(body).__name__,
        text=sentence(body, at.run.state.snapshots),
        writer=entry.writer,
        details={} if isinstance(body, Unknown) else msgspec.to_builtins(body),
    )


@of_whole_run
def wait(
    at: AddressedRun,
    step: FromStep = None,
    verified: Verified = False,
    timeout: Timeout = "10m",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Wait for a snapshot: for the next one, or for one of at least --step.

    Example: {program} wait s3://training/llama-7b --step 5000 --timeout 2h
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.convert import snapshot_records
    from checkpoint_cli.waiting import awaited, fits, until

    known = {each.id for each in at.run.snapshots(all=True)} if step is None else set()

    def found() -> Snapshot | None:
        at.run.refresh()
        for each in at.run.snapshots():
            if fits(each.id, each.step, each.verified, known=known, step=step, verified=verified):
                return each
        return None

    snapshot = until(found, aim=awaited(step), subject=at.url, timeout=timeout, poll_seconds=_POLL_SECONDS)
    run = findings(at)
    views.show_snapshot(snapshot_records(run, [snapshot])[0], output, run.now)


@of_whole_run
def follow(
    at: AddressedRun,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Stop after this many snapshots.")] = None,
    output: Output = OutputFormat.NAME,
) -> None:
    """Print each new snapshot as soon as it is committed: one id per line, for an evaluator to read.

    Example: {program} follow s3://training/llama-7b | while read id; do evaluate "$id"; done
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.convert import snapshot_records

    for number, snapshot in enumerate(at.run.follow(), start=1):
        found = findings(at)
        record = snapshot_records(found, [snapshot])[0]
        if output is OutputFormat.JSON:
            import msgspec

            views.write_line(msgspec.json.encode(record).decode())
        else:
            views.show_snapshot(record, output, found.now)
        views.flush()
        if number == count:
            return
