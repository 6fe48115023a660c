"""``bundle``: an archive for a support request, without secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from checkpoint_cli.archive import secrets_here, write_archive
from checkpoint_cli.bucket.door import AddressedRun, of_whole_run

_MOST_ENTRIES = 20_000
_NAMED = ("CHECKPOINT_", "AWS_", "AZURE_", "GOOGLE_", "KUBERNETES_", "TORCH", "NCCL_", "WORLD_SIZE", "RANK")


@of_whole_run
def bundle(
    at: AddressedRun,
    file: Annotated[str, typer.Option("--file", "-f", help="Archive to write; default: <run>-bundle.tar.gz.")] = "",
) -> None:
    """Write an archive for a support request: status, snapshots, the log, checks and versions. It holds no secrets.

    Values of environment variables are left out; values of credentials are removed wherever they appear.

    Example: {program} bundle s3://training/llama-7b --file llama.tar.gz
    """
    from checkpoint_cli.output import write

    path = Path(file or f"{at.url.rpartition('/')[2] or 'run'}-bundle.tar.gz")
    write_archive(path, contents(at), secrets_here(at.credentials_folder, os.environ))
    write(f"Wrote {path}")


def contents(at: AddressedRun) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of the files in the archive."""
    import msgspec

    from checkpoint_cli.bucket.checks import run_checks
    from checkpoint_cli.bucket.convert import run_record, snapshot_records
    from checkpoint_cli.bucket.reading import _entry_record, findings
    from checkpoint_cli.records import ReportRecord, SnapshotRecords
    from checkpoint_cli.versions import versions

    def pretty(record: object) -> str:
        return msgspec.json.format(msgspec.json.encode(record), indent=2).decode()

    found = findings(at, heartbeat=True)
    yield "status.json", pretty(run_record(found))
    snapshots = snapshot_records(found, at.run.snapshots(all=True))
    yield "snapshots.json", pretty(SnapshotRecords(run=at.url, items=snapshots))
    checks = (*versions(), *run_checks(at))
    yield "checks.json", pretty(ReportRecord(subject=at.url, items=checks))
    yield "policy.json", pretty(found.run.policy)
    names = sorted(name for name in os.environ if name.startswith(_NAMED))
    yield "environment.txt", "\n".join(names) + "\n"
    entries = at.run.entries(after=max(found.run.head - _MOST_ENTRIES, 0))
    yield "log.jsonl", "".join(msgspec.json.encode(_entry_record(at, each)).decode() + "\n" for each in entries)
