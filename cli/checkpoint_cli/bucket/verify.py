"""``verify``: compares stored objects with what was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from checkpoint_cli.bucket.changing import WithoutOperator
from checkpoint_cli.bucket.door import AddressedRun, of_run
from checkpoint_cli.options import Output
from checkpoint_cli.output import OutputFormat

if TYPE_CHECKING:
    from collections.abc import Callable

    from checkpoint_cli.records import CheckRecord
    from checkpoint_sidecar.core.run import Snapshot


@of_run
def verify(
    at: AddressedRun,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Read all bytes and compare their checksums, not only sizes.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Check every snapshot that can be restored.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write the result into the log, where retention and restores rely on it.")
    ] = False,
    without_operator: WithoutOperator = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Compare the stored objects of a snapshot with its manifest; without a selector, of the latest.

    Example: {program} verify s3://training/llama-7b@best --checksums
    """
    from checkpoint_cli import views
    from checkpoint_cli.exits import ExitStatus
    from checkpoint_cli.progress import bytes_bar
    from checkpoint_cli.records import ReportRecord
    from checkpoint_sidecar.core.sharing import distinct_bytes
    from checkpoint_sidecar.engine.verify import VerificationPass

    if everything and at.selector:
        raise typer.BadParameter("--all is about a whole run: leave out the selector.")
    snapshots = at.run.snapshots() if everything else (present(at.url, at.snapshot()),)
    total = distinct_bytes(snapshots) if checksums else 0
    options: dict[str, Any] = {"record": record, "without_operator": without_operator, "same_pass": VerificationPass()}
    with bytes_bar("verifying", total) as advance:
        checks = tuple(_checked(at, each, checksums, advance, options) for each in snapshots)
    views.show_report(ReportRecord(subject=at.url, items=checks), output)
    if any(each.result == "problem" for each in checks):
        raise typer.Exit(ExitStatus.PROBLEM)


def present(url: str, snapshot: Snapshot) -> Snapshot:
    """Return a snapshot whose data may be there.

    Raises:
        CommandRefusedError: It is being deleted, was deleted or was never valid.
    """
    from checkpoint_cli.exits import CommandRefusedError, ExitStatus
    from checkpoint_sidecar.core.run import SnapshotState

    if snapshot.state not in (SnapshotState.LIVE, SnapshotState.RETIRED):
        raise CommandRefusedError(
            "read the snapshot",
            f"{url}@{snapshot.id}",
            f"it is {snapshot.state.value}: its data is gone or was never valid",
            "List what can be read with the verb ls.",
            status=ExitStatus.NOT_FOUND,
        )
    return snapshot


def _checked(
    at: AddressedRun, snapshot: Snapshot, checksums: bool, advance: Callable[[int], None], options: dict[str, Any]
) -> CheckRecord:
    from checkpoint_cli.records import CheckRecord
    from checkpoint_sidecar.core.units import size

    found = at.run.verify(snapshot, checksums=checksums, progress=advance, **options)
    name = f"{snapshot.id} (step {snapshot.step})"
    if not found.passed:
        return CheckRecord(check=name, result="problem", detail=f"{found.evidence}: {found.message}")
    level = "checksums" if checksums else "sizes"
    detail = f"{level} of {snapshot.commit.files} files, {size(snapshot.commit.bytes)}"
    return CheckRecord(check=name, result="ok", detail=detail)
