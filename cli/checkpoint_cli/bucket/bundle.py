"""``bundle``: an archive for a support request, without secrets."""

from __future__ import annotations

import io
import os
import secrets
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from checkpoint_cli.bucket.door import AddressedRun, of_whole_run
from checkpoint_cli.exits import CommandRefusedError, ExitStatus

_MOST_ENTRIES = 20_000
_SECRET_NAME = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL")
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
    hidden = secrets_here(at.credentials_folder, os.environ)
    # Made in memory first: nothing half-written appears under the archive's name.
    archive = packed(contents(at), hidden)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(archive)
        os.replace(partial, path)
    except OSError as error:
        cause = error.strerror or str(error)
        hint = "Choose another place with --file."
        raise CommandRefusedError("write the archive", str(path), cause, hint, status=ExitStatus.USAGE) from error
    finally:
        partial.unlink(missing_ok=True)
    write(f"Wrote {path}")


def contents(at: AddressedRun) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of the files in the archive."""
    import msgspec

    from checkpoint_cli.bucket.checks import run_checks, versions
    from checkpoint_cli.bucket.convert import run_record, snapshot_records
    from checkpoint_cli.bucket.reading import _entry_record, findings
    from checkpoint_cli.records import ReportRecord, SnapshotRecords

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


def packed(files: Iterator[tuple[str, str]], hidden: Mapping[str, str]) -> bytes:
    """Return a compressed archive of some texts, without the values that are to be hidden."""
    from checkpoint_sidecar.store.access import redacted

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in files:
            content = redacted(text, hidden).encode()
            member = tarfile.TarInfo(f"bundle/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def secrets_here(folder: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets that this process knows: of its credentials, and of variables named like one."""
    from checkpoint_sidecar.store.access import Credentials

    found = dict(Credentials.in_folder(folder).read()) if folder else {}
    for name, value in environment.items():
        if value and any(word in name.upper() for word in _SECRET_NAME) and not Path(value).is_absolute():
            found[name] = value
    return found
