"""``export.json``: what an export holds, and which snapshot it was made of. It is written last. Pure."""

from __future__ import annotations

import msgspec

RECORD_NAME = "export.json"
MAX_RECORD_BYTES = 64 * 1024 * 1024
_FORMAT = 1


class ExportedFile(msgspec.Struct, frozen=True, rename="camel"):
    """A file of an export.

    Attributes:
        size: Bytes.
        crc32c: Checksum (Castagnoli polynomial) in 8 hexadecimal digits; empty if it is not known: the store copied the
            bytes and reported none, or an interrupted export had written the file.
    """

    name: str
    size: int
    crc32c: str = ""


class ExportRecord(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An export that is complete.

    Attributes:
        run: URL of the run.
        snapshot: Id of the snapshot.
        manifest_digest: SHA-256 of the snapshot's manifest, which has the checksums of all bytes that were exported.
        part: The part of the state.
        target: ``hf``, ``safetensors`` or ``pt``.
        options: Digest of everything else that decides about names, dtypes and files.
        tensors: Number of tensors.
        bytes: Size of the files.
        ties: Names of weights that are not written again, and the name under which each is.
        skipped: Names of values that are no tensors.
        writer: Software that wrote it.
    """

    run: str
    snapshot: str
    step: int
    manifest_digest: str
    part: str
    target: str
    options: str
    tensors: int
    bytes: int
    files: tuple[ExportedFile, ...]
    ties: dict[str, str] = {}
    skipped: tuple[str, ...] = ()
    writer: str = ""
    format: int = _FORMAT


def encode_record(record: ExportRecord) -> bytes:
    """Return the bytes of ``export.json``."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode_record(data: bytes) -> ExportRecord | None:
    """Return the record of an export; None if this version did not write one like it."""
    try:
        record = msgspec.json.decode(data, type=ExportRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return record if record.format == _FORMAT else None


def is_same_export(one: ExportRecord, other: ExportRecord) -> bool:
    """Return whether two records describe equal files: of one snapshot, with the same options."""
    fields = ("manifest_digest", "part", "target", "options")
    sizes = [[(file.name, file.size) for file in record.files] for record in (one, other)]
    return sizes[0] == sizes[1] and all(getattr(one, field) == getattr(other, field) for field in fields)
