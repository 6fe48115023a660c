"""``ls``, ``show``, ``status`` and ``log`` of the cluster door."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from checkpoint_cli import views
from checkpoint_cli.cluster.convert import event_record, event_time, run_record, snapshot_records
from checkpoint_cli.cluster.door import NamedRun, of_checkpoint, of_namespace, of_whole_checkpoint
from checkpoint_cli.cluster.kubectl import Body, Kubectl
from checkpoint_cli.exits import CommandRefusedError
from checkpoint_cli.options import Everything, Output, UntilStep
from checkpoint_cli.output import OutputFormat
from checkpoint_cli.records import EntryRecords, RunRecords, SnapshotRecords

_POLL_SECONDS = 2.0


@of_namespace
def ls(
    kubectl: Kubectl,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="List the snapshots of this Checkpoint.")] = "",
    everything: Everything = False,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="List runs of all namespaces.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the runs of a namespace, or the snapshots of one run.

    Example: {program} ls llama-7b -o wide
    """
    if not name:
        runs = [run_record(each, now=views.now()) for each in kubectl.checkpoints(everywhere=everywhere)]
        views.show_runs(RunRecords(items=tuple(sorted(runs, key=lambda each: each.name))), output, views.now())
        return
    checkpoint = kubectl.checkpoint(name)
    snapshots = snapshot_records(checkpoint, kubectl.snapshots(name))
    shown = tuple(each for each in snapshots if everything or each.state in ("Live", "Unknown"))
    views.show_snapshots(SnapshotRecords(run=f"{kubectl.namespace}/{name}", items=shown), output, views.now())


@of_checkpoint
def show(at: NamedRun, output: Output = OutputFormat.TABLE) -> None:
    """Show all that is known of one snapshot; without a selector, of the latest.

    Example: {program} show llama-7b@best
    """
    checkpoint = at.checkpoint()
    views.show_snapshot(at.snapshot(checkpoint, at.snapshots(checkpoint)), output, views.now())


@of_whole_checkpoint
def status(
    at: NamedRun,
    until_step: UntilStep = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show a run on one screen: health, progress, last and next save, lost work, what retention does next.

    Example: {program} status llama-7b --until-step 100000
    """
    checkpoint = at.checkpoint()
    record = run_record(checkpoint, now=views.now(), snapshots=at.snapshots(checkpoint), running=_running(at))
    views.show_run(record, output, views.now(), until_step=until_step)


def _running(at: NamedRun) -> int | None:
    try:
        pods = at.kubectl.pods(at.name)
    except CommandRefusedError:
        # The right to read pods is not part of the roles for Checkpoints.
        return None
    return len([each for each in pods if (each.get("status") or {}).get("phase") == "Running"])


@of_whole_checkpoint
def log(
    at: NamedRun,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for further Events.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Print the Events of a run, oldest first. The run log in the bucket has more.

    Example: {program} log llama-7b -f
    """
    at.checkpoint()
    seen: set[tuple[str, int]] = set()
    events = _new_events(at, seen)
    if not follow:
        views.show_entries(EntryRecords(run=at.shown, items=tuple(event_record(each) for each in events)), output)
        return
    while True:
        for event in events:
            views.show_entry(event_record(event), output)
        views.flush()
        time.sleep(_POLL_SECONDS)
        events = _new_events(at, seen)


def _new_events(at: NamedRun, seen: set[tuple[str, int]]) -> list[Body]:
    found = []
    for event in sorted(at.kubectl.events(at.name), key=event_time):
        mark = (event["metadata"]["uid"], event.get("count") or 1)
        if mark not in seen:
            seen.add(mark)
            found.append(event)
    return found
