"""``save``, ``rollback``, ``hold``, ``release``, ``retire`` and ``wait`` of the cluster door: they edit specs."""

from __future__ import annotations

from typing import Any

from checkpoint_cli import views
from checkpoint_cli.asking import confirm
from checkpoint_cli.cluster.door import NamedRun, of_checkpoint, of_whole_checkpoint
from checkpoint_cli.cluster.kubectl import Body
from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.options import DryRun, FromStep, Output, Quarantine, Timeout, Verified, Wait, Yes, new_request
from checkpoint_cli.output import OutputFormat
from checkpoint_cli.records import ChangeRecord, SnapshotRecord
from checkpoint_cli.waiting import awaited, fits, until
from checkpoint_sidecar.core.api import CHECKPOINT_PLURAL, RELEASE_ANNOTATION, SNAPSHOT_PLURAL

_POLL_SECONDS = 1.0


@of_whole_checkpoint
def save(
    at: NamedRun,
    wait_for_it: Wait = False,
    timeout: Timeout = "10m",
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Ask training to save at its next step.

    Example: {program} save llama-7b --wait --timeout 10m
    """
    request = new_request("save")
    _patch_checkpoint(at, {"save": {"request": request}}, dry_run=dry_run)
    text = f"{'Would ask' if dry_run else 'Asked'} {at.shown} to save, as request {request}."
    if not wait_for_it or dry_run:
        _changed("save", at, text, output, request=request, dry_run=dry_run)
        return

    def saved() -> Body | None:
        status: Body = at.checkpoint().get("status") or {}
        return status if status.get("lastSaveRequest") == request else None

    answer = until(saved, aim=f"the save {request}", subject=at.shown, timeout=timeout, poll_seconds=_POLL_SECONDS)
    latest = answer.get("latest") or {}
    text = f"{at.shown} has saved step {latest.get('step', '?')} for request {request}."
    _changed("save", at, text, output, request=request, snapshot=latest.get("snapshot", ""))


@of_whole_checkpoint
def wait(
    at: NamedRun,
    step: FromStep = None,
    verified: Verified = False,
    timeout: Timeout = "10m",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Wait for a snapshot: for the next one, or for one of at least --step.

    Example: {program} wait llama-7b --step 5000 --verified --timeout 2h
    """
    first = at.checkpoint()
    known = {each.id for each in at.snapshots(first)} if step is None else set()

    def found() -> SnapshotRecord | None:
        for each in at.snapshots(first):
            if each.state == "Live" and fits(
                each.id, each.step, each.verified, known=known, step=step, verified=verified
            ):
                return each
        return None

    record = until(found, aim=awaited(step), subject=at.shown, timeout=timeout, poll_seconds=_POLL_SECONDS)
    views.show_snapshot(record, output, views.now())


@of_checkpoint
def rollback(
    at: NamedRun,
    yes: Yes = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Let the next start restore an older snapshot, once. Newer snapshots are superseded as soon as that start saves.

    Example: {program} rollback llama-7b@900 --yes
    """
    snapshot = _named_snapshot(at, "roll back")
    request = new_request("rollback")
    if at.selector == "best":
        wanted = {"request": request, "to": "Best", "snapshot": None}
    else:
        wanted = {"request": request, "to": "Snapshot", "snapshot": snapshot.id}
    if not dry_run:
        confirm("roll back", at.shown, f"The next start of {at.shown} restores step {snapshot.step}", yes=yes)
    _patch_checkpoint(at, {"restore": {"rollback": wanted}}, dry_run=dry_run)
    verb = "would restore" if dry_run else "restores"
    text = f"The next start of {at.shown} {verb} {snapshot.id} (step {snapshot.step}), as request {request}."
    _changed("rollback", at, text, output, request=request, snapshot=snapshot.id, dry_run=dry_run)


@of_checkpoint
def hold(at: NamedRun, dry_run: DryRun = False, output: Output = OutputFormat.TABLE) -> None:
    """Keep a snapshot, whatever the policy says, until it is released.

    Example: {program} hold llama-7b@900
    """
    _dispose(at, "Hold", "is kept until it is released", dry_run=dry_run, output=output)


@of_checkpoint
def release(
    at: NamedRun,
    quarantine: Quarantine = False,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Leave a held or retired snapshot to the policy again; with --quarantine, trust a quarantined one again.

    Example: {program} release llama-7b@900
    """
    if not quarantine:
        _dispose(at, "Auto", "is left to the policy", dry_run=dry_run, output=output)
        return
    snapshot = _named_snapshot(at, "release")
    request = new_request("release")
    patch = {"metadata": {"annotations": {RELEASE_ANNOTATION: request}}}
    at.kubectl.patch(SNAPSHOT_PLURAL, f"{at.name}-{snapshot.id}", patch, dry_run=dry_run)
    text = f"The evidence against {snapshot.id} {'would be' if dry_run else 'is'} discarded, as request {request}."
    _changed("release", at, text, output, request=request, snapshot=snapshot.id, dry_run=dry_run)


@of_checkpoint
def retire(at: NamedRun, yes: Yes = False, dry_run: DryRun = False, output: Output = OutputFormat.TABLE) -> None:
    """Give a snapshot up: restores stop using it, and its data is deleted after the grace period.

    Example: {program} retire llama-7b@900 --yes
    """
    if not dry_run:
        confirm("retire", str(at.shown), f"The data of {at.name}@{at.selector or 'latest'} will be deleted", yes=yes)
    _dispose(
        at,
        "Retire",
        "goes after the grace period, unless a floor of the policy keeps it",
        dry_run=dry_run,
        output=output,
    )


def _dispose(at: NamedRun, disposition: str, effect: str, *, dry_run: bool, output: OutputFormat) -> None:
    verb = {"Hold": "hold", "Auto": "release", "Retire": "retire"}[disposition]
    snapshot = _named_snapshot(at, verb)
    if snapshot.disposition == disposition:
        _changed(verb, at, f"{snapshot.id} {effect} already.", output, snapshot=snapshot.id, dry_run=True)
        return
    patch = {"spec": {"disposition": disposition}}
    at.kubectl.patch(SNAPSHOT_PLURAL, f"{at.name}-{snapshot.id}", patch, dry_run=dry_run)
    text = f"{snapshot.id} {effect}{' if you run this without --dry-run' if dry_run else ''}."
    _changed(verb, at, text, output, snapshot=snapshot.id, dry_run=dry_run)


def _named_snapshot(at: NamedRun, verb: str) -> SnapshotRecord:
    if not at.selector:
        raise CommandRefusedError(
            verb, at.shown, "no snapshot was named", f"Write {at.name}@<step> or @<id>.", status=ExitStatus.USAGE
        )
    checkpoint = at.checkpoint()
    snapshot = at.snapshot(checkpoint, at.snapshots(checkpoint))
    if snapshot.state in ("Purging", "Purged", "Rejected"):
        raise CommandRefusedError(
            verb,
            f"{snapshot.id} of {at.shown}",
            f"it is {snapshot.state}",
            "List what can be restored with the verb ls.",
            status=ExitStatus.REFUSED,
        )
    return snapshot


def _patch_checkpoint(at: NamedRun, spec: dict[str, Any], *, dry_run: bool) -> None:
    at.kubectl.patch(CHECKPOINT_PLURAL, at.name, {"spec": spec}, dry_run=dry_run)


def _changed(
    verb: str,
    at: NamedRun,
    text: str,
    output: OutputFormat,
    *,
    request: str = "",
    snapshot: str = "",
    dry_run: bool = False,
) -> None:
    record = ChangeRecord(verb=verb, run=at.shown, snapshot=snapshot, request=request, done=not dry_run, text=text)
    views.show_change(record, output)
