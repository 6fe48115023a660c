"""``export``: the tensors of a snapshot as files for other programs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_cli.bucket.door import AddressedRun, of_run
from checkpoint_cli.options import DryRun, Output
from checkpoint_cli.output import OutputFormat
from checkpoint_cli.words import parse_size

if TYPE_CHECKING:
    from checkpoint_cli.records import ExportedRecord
    from checkpoint_sidecar.exports.exporting import ExportSettings, PreparedExport
    from checkpoint_sidecar.exports.record import ExportRecord
    from checkpoint_sidecar.store.base import Store


class ExportTarget(StrEnum):
    """Values of ``--to``."""

    HF = "hf"
    SAFETENSORS = "safetensors"
    PT = "pt"


def _rules(values: list[str]) -> list[str]:
    if wrong := next((each for each in values if "=" not in each), None):
        raise typer.BadParameter(f"{wrong!r} is not <regex>=<replacement>.")
    return values


def _size(text: str) -> str:
    try:
        parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


@of_run
def export(
    at: AddressedRun,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A folder, or a URL in a bucket.")],
    to: Annotated[
        ExportTarget,
        typer.Option("--to", help="hf: safetensors in shards with an index; safetensors: one file; pt: torch.save."),
    ] = ExportTarget.SAFETENSORS,
    part: Annotated[
        str, typer.Option("--part", help="Object of the state; by default the model. A dot takes everything.")
    ] = "",
    strip: Annotated[list[str], typer.Option("--strip", help="Prefix to remove from names; repeatable.")] = [],  # noqa: B006
    rename: Annotated[
        list[str],
        typer.Option("--rename", metavar="REGEX=TEXT", callback=_rules, help="Replace in names; repeatable, in order."),
    ] = [],  # noqa: B006
    dtype: Annotated[str, typer.Option("--dtype", help="Cast floating-point tensors, such as to bfloat16.")] = "",
    max_shard_size: Annotated[
        str,
        typer.Option("--max-shard-size", callback=_size, help="Such as 5GB, the default of hf; 0 for one file."),
    ] = "",
    config: Annotated[
        list[str], typer.Option("--config", help="File to copy beside, such as config.json; repeatable.")
    ] = [],  # noqa: B006
    checksums: Annotated[
        bool,
        typer.Option("--checksums", help="Read and compare all bytes, also where the store could copy them by itself."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--yes", "-y", help="Replace another export at the destination.")
    ] = False,
    to_endpoint: Annotated[
        str, typer.Option("--to-endpoint", help="Base URL of the destination's service, if it is another one.")
    ] = "",
    to_region: Annotated[str, typer.Option("--to-region", help="Region of the destination's bucket.")] = "",
    to_credentials_folder: Annotated[
        str, typer.Option("--to-credentials-folder", help="As --credentials-folder, for the destination.")
    ] = "",
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Write the tensors of a snapshot as safetensors or torch.save; without a selector, of the latest.

    Within one S3 service the store copies the bytes by itself. Repeat the command to continue an export that was
    interrupted. Needs torch for --dtype and --to pt only.

    Example: {program} export s3://training/llama-7b@best ./llama-7b --to hf --config config.json
    """
    from checkpoint_cli import views
    from checkpoint_cli.bucket.verify import present
    from checkpoint_cli.progress import bytes_bar
    from checkpoint_sidecar.exports.choosing import Naming
    from checkpoint_sidecar.exports.exporting import ExportSettings, prepare_export, read_beside

    rules = tuple((regex, text) for regex, _, text in (each.rpartition("=") for each in rename))
    settings = ExportSettings(
        to=to.value,
        naming=Naming(part, tuple(strip), rules, dtype),
        shard_bytes=_limit(max_shard_size, to),
        beside=read_beside(config),
        copies=not checksums,
    )
    target = _target(at, destination, to_endpoint, to_region, to_credentials_folder)
    prepared = prepare_export(at.run, present(at.url, at.snapshot()), target, settings, overwrite=overwrite)
    if dry_run:
        views.show_export(_shown(prepared, prepared.record, target, settings, done=False), output)
        return
    with bytes_bar("exporting", prepared.bytes_left) as advance:
        record = prepared.carry_out(advance)
    views.show_export(_shown(prepared, record, target, settings, done=not prepared.whole), output)


def _limit(text: str, to: ExportTarget) -> int | None:
    if not text:
        return None
    size = parse_size(text)
    # Without a limit, hf has its own.
    return size or (None if to is not ExportTarget.HF else 1 << 62)


def _target(at: AddressedRun, destination: str, endpoint: str, region: str, credentials_folder: str) -> Store:
    from checkpoint_cli.bucket.stores import store_at
    from checkpoint_sidecar.exports.exporting import destination_settings

    url = destination_settings(destination, None).url
    if url.partition("://")[0] == at.url.partition("://")[0] and not (endpoint or region or credentials_folder):
        endpoint, region, credentials_folder = at.endpoint, at.region, at.credentials_folder
    return store_at(url, endpoint, region, credentials_folder)


def _shown(
    prepared: PreparedExport, record: ExportRecord, target: Store, settings: ExportSettings, *, done: bool
) -> ExportedRecord:
    from checkpoint_cli.records import ExportedFileRecord, ExportedRecord

    def state(name: str) -> str:
        if name in prepared.kept:
            return "kept"
        return "written" if done else "planned"

    return ExportedRecord(
        run=record.run,
        snapshot=record.snapshot,
        step=record.step,
        destination=target.url,
        to=settings.to,
        part=record.part,
        tensors=record.tensors,
        bytes=record.bytes,
        passing_bytes=prepared.passing,
        done=done,
        manifest_digest=record.manifest_digest,
        items=tuple(
            ExportedFileRecord(name=file.name, bytes=file.size, crc32c=file.crc32c, state=state(file.name))
            for file in record.files
        ),
        ties=record.ties,
        skipped=record.skipped,
    )
