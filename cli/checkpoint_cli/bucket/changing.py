"""``save``, ``rollback``, ``hold``, ``release``, ``retire`` and ``prune`` of the bucket door: they append to the log.

The rules are those of the operator (``core.requests``), and where an operator manages the run it is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_cli.bucket.door import AddressedRun, of_run, of_whole_run
from checkpoint_cli.options import DryRun, Output, Quarantine, Timeout, Wait, Yes
from checkpoint_cli.output import OutputFormat

if TYPE_CHECKING:
    from checkpoint_sidecar.core.run import Snapshot
    from checkpoint_sidecar.manage.changes import RunChange
    from checkpoint_sidecar.manage.pruning import PrunePlan

_POLL_SECONDS = 1.0

WithoutOperator = Annotated[
    bool,
    typer.Option(
        "--without-operator", help="Change the run although an operator manages it, because none runs any more."
    ),
]


@of_whole_run
def save(
    at: AddressedRun,
    wait_for_it: Wait = False,
    timeout: Timeout = "10m",
    without_operator: WithoutOperator = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Ask training to save at its next step.

    Example: {program} save s3://training/llama-7b --wait --timeout 10m
    """
    change = at.run.request_save(without_operator=without_operator, dry_run=dry_run)
    if not wait_for_it or dry_run:
        text = f"{'Would ask' if dry_run else 'Asked'} training to save, as request {change.request}."
        _show(at, "save", change, text, output)
        return
    from checkpoint_cli.waiting import until

    def saved() -> Snapshot | None:
        at.run.refresh()
        return at.run.answer_to(change.request)

    snapshot = until(
        saved, aim=f"the save {change.request}", subject=at.url, timeout=timeout, poll_seconds=_POLL_SECONDS
    )
    text = f"Training has saved step {snapshot.step} for request {change.request}."
    _show(at, "save", change, text, output, snapshot=snapshot.id)


@of_run
def rollback(
    at: AddressedRun,
    yes: Yes = False,
    without_operator: WithoutOperator = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Let the next start restore an older snapshot, once. Newer snapshots are superseded as soon as that start saves.

    Example: {program} rollback s3://training/llama-7b@900 --yes
    """
    from checkpoint_cli.asking import confirm

    selector = named(at, "roll back")
    snapshot = at.run.find(selector)
    checked = at.run.rollback(snapshot.id, without_operator=without_operator, dry_run=True)
    if not dry_run:
        confirm("roll back", at.url, f"The next start of {at.url} restores step {snapshot.step}", yes=yes)
        checked = at.run.rollback(snapshot.id, without_operator=without_operator)
    verb = "would restore" if dry_run else "restores"
    text = f"The next start {verb} {snapshot.id} (step {snapshot.step}), as request {checked.request}."
    _show(at, "rollback", checked, text, output)


@of_run
def hold(
    at: AddressedRun,
    without_operator: WithoutOperator = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Keep a snapshot, whatever the policy says, until it is released.

    Example: {program} hold s3://training/llama-7b@900
    """
    selector = named(at, "hold")
    change = at.run.hold(selector, without_operator=without_operator, dry_run=dry_run)
    _show(at, "hold", change, f"{change.snapshot} is kept until it is released{_if(dry_run)}.", output)


@of_run
def release(
    at: AddressedRun,
    quarantine: Quarantine = False,
    without_operator: WithoutOperator = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Leave a held or retired snapshot to the policy again; with --quarantine, trust a quarantined one again.

    Example: {program} release s3://training/llama-7b@900
    """
    selector = named(at, "release")
    if quarantine:
        change = at.run.release_quarantine(selector, without_operator=without_operator, dry_run=dry_run)
        text = f"The evidence against {change.snapshot} is discarded, as request {change.request}{_if(dry_run)}."
    else:
        change = at.run.release(selector, without_operator=without_operator, dry_run=dry_run)
        text = f"{change.snapshot} is left to the policy{_if(dry_run)}."
    _show(at, "release", change, text, output)


@of_run
def retire(
    at: AddressedRun,
    yes: Yes = False,
    without_operator: WithoutOperator = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Give a snapshot up: the next prune retires it, and a later one deletes its data after the grace period.

    Example: {program} retire s3://training/llama-7b@900 --yes
    """
    from checkpoint_cli.asking import confirm

    snapshot = at.run.find(named(at, "retire"))
    change = at.run.retire(snapshot.id, without_operator=without_operator, dry_run=True)
    if not dry_run:
        confirm("retire", at.url, f"The data of {snapshot.id} (step {snapshot.step}) will be deleted", yes=yes)
        change = at.run.retire(snapshot.id, without_operator=without_operator)
    _show(at, "retire", change, f"{snapshot.id} goes after the grace period{_if(dry_run)}.", output)


@of_whole_run
def prune(
    at: AddressedRun,
    yes: Yes = False,
    without_operator: WithoutOperator = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Carry out the retention policy of a run: retire what it gives up, delete what was retired long enough.

    Run it again for the rest: a few snapshots are deleted at a time.

    Example: {program} prune s3://training/llama-7b --dry-run
    """
    from checkpoint_cli import views
    from checkpoint_cli.asking import confirm
    from checkpoint_cli.bucket.convert import snapshot_records
    from checkpoint_cli.bucket.reading import findings
    from checkpoint_cli.records import SnapshotRecords
    from checkpoint_sidecar.manage.changes import check_changeable

    found = findings(at)
    plan = at.run.prune_plan()
    if not dry_run:
        check_changeable(found.run, "prune", subject=at.url, without_operator=without_operator)
        confirm("prune", at.url, f"This prune {_effect(plan)}", yes=yes)
        plan = at.run.prune(without_operator=without_operator)
        found = findings(at)
    touched = {*plan.retire, *plan.reinstate, *plan.purge, *plan.release}
    if dry_run and touched:
        views.note(f"A prune now {_effect(plan)}.")
    shown = [each for each in at.run.snapshots(all=True) if each.id in touched]
    records = SnapshotRecords(run=at.url, items=snapshot_records(found, shown))
    views.show_snapshots(records, output, found.now, empty=f"There is nothing to retire or delete in {at.url}.")


def _effect(plan: PrunePlan) -> str:
    from checkpoint_sidecar.core.units import counted, size

    back = f"reinstates {counted(len(plan.reinstate), 'snapshot')}, " if plan.reinstate else ""
    left = f" and what {counted(len(plan.release), 'deleted one')} left for others" if plan.release else ""
    retired, purged = (counted(len(each), "snapshot") for each in (plan.retire, plan.purge))
    return f"{back}retires {retired}, and deletes {purged}{left}, {size(plan.bytes)}"


def named(at: AddressedRun, operation: str) -> str:
    """Return the selector, which a verb that changes a snapshot must be given.

    Raises:
        CommandRefusedError: There is none (USAGE).
    """
    from checkpoint_cli.exits import CommandRefusedError, ExitStatus

    if not at.selector:
        hint = f"Write {at.url}@<step> or @<id>."
        raise CommandRefusedError(operation, at.url, "no snapshot was named", hint, status=ExitStatus.USAGE)
    return at.selector


def _if(dry_run: bool) -> str:
    return ", once you run this without --dry-run" if dry_run else ""


def _show(
    at: AddressedRun, verb: str, change: RunChange, text: str, output: OutputFormat, *, snapshot: str = ""
) -> None:
    from checkpoint_cli import views
    from checkpoint_cli.records import ChangeRecord

    record = ChangeRecord(
        verb=verb,
        run=at.url,
        snapshot=snapshot or change.snapshot,
        request=change.request,
        done=change.done,
        text=text,
    )
    views.show_change(record, output)
