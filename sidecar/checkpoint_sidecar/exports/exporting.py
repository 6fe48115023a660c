"""``export``: writes the tensors of a snapshot as files for other programs, to a folder or a bucket."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from checkpoint_sidecar.core.errors import (
    CheckpointError,
    ConfigurationError,
    CorruptSnapshotError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SnapshotNotFoundError,
)
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.engine.limits import LEAST_MEMORY_BYTES, EngineSettings
from checkpoint_sidecar.engine.meter import TransferMeter
from checkpoint_sidecar.engine.verify import read_manifest
from checkpoint_sidecar.exports.choosing import ExportedTensor, Naming, TensorChoice, choose
from checkpoint_sidecar.exports.destination import look_at
from checkpoint_sidecar.exports.files import (
    INDEX_NAME,
    PT_NAME,
    SHARD_BYTES,
    ExportFile,
    ExportFormat,
    index_of,
    safetensors_files,
)
from checkpoint_sidecar.exports.reading import Cast, SnapshotReading
from checkpoint_sidecar.exports.record import (
    RECORD_NAME,
    ExportedFile,
    ExportRecord,
    encode_record,
)
from checkpoint_sidecar.exports.snapshot import OpenSnapshot
from checkpoint_sidecar.exports.writing import FileWriter, planned_parts, source_ranges
from checkpoint_sidecar.manage.addressed import open_addressed
from checkpoint_sidecar.manage.changes import why_gone, why_unreadable
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import ComposesObjects, Store
from checkpoint_sidecar.store.common.partial import PARTIAL_FOLDER
from checkpoint_sidecar.store.opening import open_store

_OPERATION = "export"
_MOST_COPIED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What to export, and as what.

    Attributes:
        to: ``safetensors``; ``hf``, the same in shards as transformers writes them; or ``pt``, one file of
            ``torch.save``.
        naming: Part, names and dtype.
        shard_bytes: Maximum size of a file in bytes, unless it holds one tensor; None for 5 GB with ``hf``, and for one
            file otherwise.
        beside: Contents of further files by name, such as ``config.json``.
        copies: Let the store copy bytes by itself where it can. Copied bytes are not compared with their checksums.
    """

    to: ExportFormat = "safetensors"
    naming: Naming = field(default_factory=Naming)
    shard_bytes: int | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)
    copies: bool = True


def export(
    url: str | StoreSettings | StoredRun,
    destination: str | StoreSettings,
    *,
    to: ExportFormat = "safetensors",
    selector: str | int = "",
    part: str = "",
    strip: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
    dtype: str = "",
    shard_bytes: int | None = None,
    beside: Sequence[str | Path] = (),
    copies: bool = True,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ExportRecord:
    """Write the tensors of a snapshot as safetensors or as one file of ``torch.save``.

    >>> export("s3://training/llama-7b@best", "s3://models/llama-7b", to="hf", beside=["config.json"])

    Memory stays within that of the engine (256 MiB, ``CHECKPOINT_MEMORY``) for any size of the snapshot. Within one S3
    service the store copies the bytes by itself. Files appear under their names when they are whole, the index and
    ``export.json`` last. Called again after an interruption, it continues behind the files that are complete. Needs
    torch only for a cast and for ``pt``.

    Args:
        url: ``<url>``, ``<url>@latest``, ``<url>@best``, ``<url>@<step>`` or ``<url>@<id>``; or settings, or a run.
        destination: A folder, a URL, or settings. A URL is reached as ``url`` is, if that is settings of the same
            scheme.
        to: See ``ExportSettings``.
        selector: The snapshot, where ``url`` does not name it.
        part: Name of the object in the state; by default the model.
        strip: Prefixes to remove from names.
        rename: Regular expressions with their replacements, as ``re.sub`` takes them, applied in order.
        dtype: Cast floating-point tensors, for example to ``bfloat16``.
        shard_bytes: See ``ExportSettings``.
        beside: Files to copy beside the tensors, such as ``config.json``.
        copies: See ``ExportSettings``.
        overwrite: Replace another export, instead of refusing.
        progress: Called with the number of bytes of each piece that is stored.

    Raises:
        RunNotFoundError, SnapshotNotFoundError, AmbiguousSelectorError: Nothing, or not one thing, fits the address; or
            the snapshot was deleted meanwhile.
        CheckpointExistsError: The destination has other files of the same names.
        ConfigurationError: An argument cannot work.
        CorruptSnapshotError: Stored bytes are not those that were committed.
        IncompatibleSnapshotError: A tensor is stored in a way that this version does not know.
        StoreError, LogError: A store failed.
    """
    naming = Naming(part, tuple(strip), tuple(rename), dtype)
    settings = ExportSettings(to, naming, shard_bytes, read_beside(beside), copies)
    run, selector = open_addressed(url, selector)
    target = open_store(destination_settings(destination, url if isinstance(url, StoreSettings) else None))
    prepared = prepare_export(run, run.find(selector or "latest"), target, settings, overwrite=overwrite)
    return prepared.carry_out(progress)


def destination_settings(destination: str | StoreSettings, source: StoreSettings | None) -> StoreSettings:
    """Return the settings of a destination: those of the source, where a plain URL has its scheme."""
    if isinstance(destination, StoreSettings):
        return destination
    url = destination if "://" in destination else os.path.abspath(destination)
    if source is not None and source.url.partition("://")[0] == url.partition("://")[0]:
        return replace(source, url=url)
    return StoreSettings(url)


def read_beside(paths: Sequence[str | Path]) -> dict[str, bytes]:
    """Read the files that are copied beside an export; URLs by the environment's own identity.

    Raises:
        ConfigurationError: One cannot be read, or two have one name.
    """
    found: dict[str, bytes] = {}
    for path in map(str, paths):
        folder, _, name = path.rpartition("/")
        try:
            if "://" in path:
                data = open_store(StoreSettings(folder)).get(name, max_bytes=_MOST_COPIED_BYTES).data
            else:
                data = Path(path).read_bytes()
        except (OSError, ObjectNotFoundError, ObjectTooLargeError) as error:
            cause = error.cause if isinstance(error, CheckpointError) else error.strerror or str(error)
            raise ConfigurationError("copy the file", path, cause, "Give the path of a small file.") from None
        if found.setdefault(name, data) is not data or name in (INDEX_NAME, RECORD_NAME):
            raise ConfigurationError("copy the file", path, "the export has another file of this name")
    return found


@dataclass(frozen=True, slots=True)
class PreparedExport:
    """An export whose files are laid out, and whose destination was looked at. Nothing was written yet.

    Attributes:
        record: What ``export.json`` will say, except for checksums.
        files: The files of tensors.
        kept: Names of files that an interrupted export left complete.
        whole: Whether the same export is there already.
        replaced: Names that are in the way and are deleted first.
        passing: Bytes that will pass through this process.
    """

    record: ExportRecord
    files: tuple[ExportFile, ...]
    kept: frozenset[str]
    whole: bool
    replaced: tuple[str, ...]
    passing: int
    _run: StoredRun
    _small: Mapping[str, bytes]
    _writer: FileWriter

    @property
    def bytes_left(self) -> int:
        """Size of the files to write."""
        return sum(file.size for file in self.files if file.name not in self.kept)

    def carry_out(self, progress: Callable[[int], None] | None = None) -> ExportRecord:
        """Write what is missing, and return the record.

        Args:
            progress: Called with the number of bytes of each piece that is stored.

        Raises:
            SnapshotNotFoundError, CorruptSnapshotError, StoreError: See ``export``; call ``export`` again to continue.
        """
        if self.whole:
            return self.record
        meter = _Reported(progress) if progress else TransferMeter()
        store, writer = self._writer.store, replace(self._writer, progress=meter)
        store.delete(self.replaced)
        checksums = {}
        try:
            for file in self.files:
                if file.name not in self.kept:
                    checksums[file.name] = writer.write(file).crc32c
        except CorruptSnapshotError as error:
            raise self._deleted() or error from None
        for name, data in self._small.items():
            store.put(name, data)
        files = tuple(
            ExportedFile(file.name, file.size, "" if (crc := checksums.get(file.name)) is None else f"{crc:08x}")
            for file in self.files
        )
        record = msgspec.structs.replace(self.record, files=files)
        store.put(RECORD_NAME, encode_record(record))
        if store.url.startswith("file://"):
            with contextlib.suppress(OSError):
                Path(store.url.removeprefix("file://"), PARTIAL_FOLDER).rmdir()
        return record

    def _deleted(self) -> SnapshotNotFoundError | None:
        cause = why_gone(self._run.refresh, self.record.snapshot)
        subject = f"{self.record.run}@{self.record.snapshot}"
        hint = "Hold a snapshot to keep retention from deleting it."
        return SnapshotNotFoundError(_OPERATION, subject, cause, hint) if cause else None


class _Reported(TransferMeter):
    """Passes on every count."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        super().__init__()
        self._progress = progress

    def add(self, count: int) -> None:
        super().add(count)
        self._progress(count)


def prepare_export(
    run: StoredRun, snapshot: Snapshot, target: Store, settings: ExportSettings, *, overwrite: bool = False
) -> PreparedExport:
    """Lay out an export and look at its destination. Writes nothing.

    Args:
        target: Opened at the destination.
        overwrite: Replace files of other exports.

    Raises:
        SnapshotNotFoundError, CheckpointExistsError, ConfigurationError, CorruptSnapshotError: See ``export``.
    """
    subject = f"{run.url}@{snapshot.id}"
    if cause := why_unreadable(run.state, snapshot.id):
        raise SnapshotNotFoundError(_OPERATION, subject, cause, "Choose another snapshot.")
    if f"{target.url}/".startswith(f"{run.url}/"):
        cause = "the folder is inside the run, which owns everything below its URL"
        raise ConfigurationError("export to", target.url, cause, "Choose another one.")
    manifest = read_manifest(run.store, snapshot.commit)
    opened = OpenSnapshot(run.store, snapshot.commit.path, manifest, EngineSettings.from_environment())
    contents = opened.contents(subject)
    choice = choose(contents, settings.naming, opened.ties(contents), subject=subject)
    conversions = _conversions(settings.to, choice, subject)
    opened.check({shard.place.file for each in choice.tensors for shard in each.stored.shards})
    described = {"run": run.url, "snapshot": snapshot.id, "step": str(snapshot.step)}
    described["manifest_digest"] = snapshot.commit.manifest_digest
    files = _files(settings, choice, described, conversions, subject)
    small = dict(settings.beside)
    if len(files) > 1:
        small[INDEX_NAME] = index_of(files, described)
    record = ExportRecord(
        run=run.url,
        snapshot=snapshot.id,
        step=snapshot.step,
        manifest_digest=snapshot.commit.manifest_digest,
        part=choice.part,
        target=settings.to,
        options=_digest(settings),
        tensors=len(choice.tensors),
        bytes=sum(file.size for file in files),
        files=tuple(ExportedFile(file.name, file.size) for file in files),
        ties={tie: each.name for each in choice.tensors for tie in each.ties},
        skipped=choice.skipped,
        writer=f"checkpoint-operator {version('checkpoint-operator')}",
    )
    found = look_at(target, files, small, record, overwrite=overwrite)
    reading = opened.reading([each.stored for each in choice.tensors], conversions.cast, subject)
    copies = settings.copies and isinstance(target, ComposesObjects) and target.can_compose_from(run.store)
    writer = FileWriter(
        target,
        run.store if copies else None,
        {file.name: file.key(opened.folder) for file in opened.manifest.files},
        reading,
        _limits(opened.settings, casts=any(each.is_cast for each in choice.tensors)),
        TransferMeter(),
    )
    left = [file for file in files if file.name not in found.kept]
    return PreparedExport(
        record=found.record or record,
        files=tuple(files),
        kept=found.kept,
        whole=found.record is not None,
        replaced=found.replaced,
        passing=sum(_passing(file, reading, copies) for file in left),
        _run=run,
        _small=small,
        _writer=writer,
    )


def _limits(settings: EngineSettings, *, casts: bool) -> EngineSettings:
    """Return the limits for parts that are written: what reading and casting them needs is left."""
    share = settings.memory_bytes // (4 if casts else 2)
    return replace(settings, memory_bytes=max(share, LEAST_MEMORY_BYTES))


def _passing(file: ExportFile, reading: SnapshotReading, copies: bool) -> int:
    """Return how many bytes of a file pass through this process."""
    if not copies:
        return file.size
    parts = planned_parts(file, source_ranges(file, reading.payloads))
    return sum(part.span.length for part in parts if part.copied is None)


@dataclass(frozen=True, slots=True)
class _Conversions:
    """What only torch can do; None where it is not needed."""

    cast: Cast | None = None
    saved_layout: Callable[[Sequence[Any]], list[bytes | int]] | None = None


def _conversions(to: ExportFormat, choice: TensorChoice, subject: str) -> _Conversions:
    if to != "pt" and not any(each.is_cast for each in choice.tensors):
        return _Conversions()
    try:
        from checkpoint_sidecar.training.conversion import cast, saved_layout
    except ImportError as error:
        if error.name not in ("torch", "numpy"):
            raise
        cause = "a cast, or a file of torch.save, needs torch, which is not installed"
        raise ConfigurationError(_OPERATION, subject, cause, "Run: pip install 'checkpoint-operator[torch]'") from error
    return _Conversions(cast, saved_layout)


def _files(
    settings: ExportSettings,
    choice: TensorChoice,
    described: Mapping[str, str],
    conversions: _Conversions,
    subject: str,
) -> list[ExportFile]:
    limit = settings.shard_bytes
    if settings.to == "pt":
        if limit is not None:
            raise ConfigurationError(_OPERATION, subject, "a file of torch.save has no shards", "Export it as hf.")
        assert conversions.saved_layout is not None
        return [ExportFile(PT_NAME, _saved(choice.tensors, conversions.saved_layout))]
    if limit is None and settings.to == "hf":
        limit = SHARD_BYTES
    return safetensors_files(choice.tensors, limit=limit, metadata={"format": "pt", **described}, subject=subject)


def _saved(
    tensors: Sequence[ExportedTensor], layout: Callable[[Sequence[Any]], list[bytes | int]]
) -> tuple[bytes | ExportedTensor, ...]:
    pieces = layout([((each.name, *each.ties), each.dtype, each.stored.shape) for each in tensors])
    return tuple(tensors[piece] if isinstance(piece, int) else piece for piece in pieces)


def _digest(settings: ExportSettings) -> str:
    naming = settings.naming
    decisive = [naming.strip, naming.rename, naming.dtype, settings.shard_bytes]
    beside = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(settings.beside.items())}
    return hashlib.sha256(msgspec.json.encode([decisive, beside])).hexdigest()
