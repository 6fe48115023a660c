"""The manifest: every file of a snapshot with its size and checksums.

It is written after all data and before the commit, which carries its SHA-256. Readers of a snapshot rely on the log for
the manifest and on the manifest for the files; they never find files by listing.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import CorruptSnapshotError, IncompatibleSnapshotError
from checkpoint_sidecar.core.shared_files import MOST_FILES, SharedFiles
from checkpoint_sidecar.core.wire import Count, Positive, SmallPositive, UndecodableError, decode_json

BLOCK_BYTES = 4 * 1024 * 1024
MAX_BLOCK_BYTES = 64 * 1024 * 1024
"""Maximum block size: a reader must hold a whole block to verify a byte of it."""
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
_LEAST_BLOCK_BYTES = 256 * 1024
_MOST_BLOCKS = 256 * 1024
FORMAT = 1
FILES_FORMAT = 2
"""Format of a manifest that lists the files of a folder; versions that would not restore them refuse it."""
SHARING_FORMAT = 3
"""Format of a manifest that lists files in the folders of other snapshots, and perhaps those of a folder besides."""
_FORMATS = (FORMAT, FILES_FORMAT, SHARING_FORMAT)
_UPGRADE = "A newer version may have written it: upgrade checkpoint-operator here."

Checksum = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class File(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One immutable object of a snapshot.

    Attributes:
        name: Name inside the save's folder.
        size: Length in bytes.
        crc32c: Checksum of the whole file (Castagnoli polynomial, RFC 3720 appendix B.4).
        block_crc32c: One big-endian 32-bit CRC32C per block of ``Manifest.block_bytes``, the last block possibly
            shorter; lets a reader that needs only a range verify it.
        shared_in: Folder of the snapshot that stored it; empty for a file in the save's own folder.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    size: Count
    crc32c: Checksum
    block_crc32c: bytes = msgspec.field(name="blockCrc32c")
    shared_in: Annotated[str, msgspec.Meta(max_length=128)] = msgspec.field(name="in", default="")

    def key(self, folder: str) -> str:
        """Return the file's key, relative to the run's root.

        Args:
            folder: The folder of the save whose manifest lists it; empty for the root.
        """
        within = self.shared_in or folder
        return f"{within}/{self.name}" if within else self.name

    def block_checksum(self, block: int) -> int:
        """Return the checksum of block ``block`` (from 0).

        Raises:
            IndexError: The file does not have this block.
        """
        if not 0 <= 4 * block < len(self.block_crc32c):
            raise IndexError(f"{self.name} has {len(self.block_crc32c) // 4} blocks, no block {block}")
        return int.from_bytes(self.block_crc32c[4 * block : 4 * block + 4], "big")


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """The contents of a committed snapshot.

    Attributes:
        files: Data files and DCP's ``.metadata``, sorted by name, which no two of them share.
        world_size: Number of ranks that saved.
        block_bytes: See ``block_bytes_for``.
        versions: Names and versions of the software that wrote it (torch, this library), for information.
    """

    snapshot: str
    step: Count
    attempt: Positive
    world_size: SmallPositive
    files: tuple[File, ...]
    versions: dict[str, str] = {}
    block_bytes: int = BLOCK_BYTES
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Total bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def shares(self) -> tuple[SharedFiles, ...]:
        """The files that other snapshots have stored, by snapshot."""
        sizes: dict[str, dict[str, int]] = {}
        for file in self.files:
            if file.shared_in:
                sizes.setdefault(layout.snapshot_in(file.shared_in), {})[file.name] = file.size
        return tuple(SharedFiles.of(holder, files) for holder, files in sorted(sizes.items()))

    def file(self, name: str) -> File | None:
        return next((file for file in self.files if file.name == name), None)


def block_bytes_for(total_bytes: int) -> int:
    """Return the block size for a snapshot's size: 256 KiB up to 64 GiB, doubling with it to 4 MiB above 512 GiB.

    Small, so that partial reads are small; large enough to limit the manifest, which every restore reads, to one or two
    megabytes.
    """
    block_bytes = _LEAST_BLOCK_BYTES
    while block_bytes < BLOCK_BYTES and total_bytes > block_bytes * _MOST_BLOCKS:
        block_bytes *= 2
    return block_bytes


def encode(manifest: Manifest) -> bytes:
    """Return the manifest's bytes.

    Raises:
        ValueError: ``decode`` would refuse them; a snapshot with such a manifest must not be committed.
    """
    data = msgspec.json.encode(manifest)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError(f"the manifest has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}")
    try:
        problem = _inconsistency(decode_json(data, Manifest))
    except UndecodableError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"the manifest cannot be read back: {problem}")
    return data


def digest(data: bytes) -> str:
    """Return the manifest digest in a commit: SHA-256 of the manifest's bytes, hex."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, *, expected_digest: str, subject: str) -> Manifest:
    """Read a manifest and check it against the commit and against itself.

    Args:
        subject: Name in errors, usually the manifest's key.

    Raises:
        CorruptSnapshotError: It is not the committed manifest.
        IncompatibleSnapshotError: It is the committed one, but this version cannot use it.
    """
    operation = "read the manifest"
    found = digest(data)
    if found != expected_digest:
        raise CorruptSnapshotError(
            operation,
            subject,
            f"its SHA-256 is {found[:16]}…, but {expected_digest[:16]}… was committed",
            evidence="ManifestMismatch",
        )
    try:
        manifest = decode_json(data, Manifest)
    except UndecodableError as error:
        raise IncompatibleSnapshotError(operation, subject, f"it is not a manifest: {error}", _UPGRADE) from error
    problem = _inconsistency(manifest)
    if problem:
        raise IncompatibleSnapshotError(operation, subject, problem, _UPGRADE)
    return manifest


def _inconsistency(manifest: Manifest) -> str:
    if manifest.format not in _FORMATS:
        return f"it has format {manifest.format}, this version reads {_FORMATS[0]} to {_FORMATS[-1]}"
    if not 4096 <= manifest.block_bytes <= MAX_BLOCK_BYTES:
        return f"its blocks have {manifest.block_bytes} bytes"
    if sum(file.shared_in != "" for file in manifest.files) > MOST_FILES:
        return f"it shares more than {MOST_FILES} files"
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names):
        return "a file is listed twice"
    for file in manifest.files:
        try:
            layout.check_file_name(file.name)
            if file.shared_in:
                layout.parse_save_folder(file.shared_in)
        except ValueError as error:
            return str(error)
        if file.shared_in and (manifest.format != SHARING_FORMAT or layout.settled_place(file.name) is None):
            return f"{file.name} of {file.shared_in} cannot be shared"
        if file.name == layout.MANIFEST_NAME:
            return "it lists itself; a purge that follows it would forget what else to delete"
        if len(file.block_crc32c) != 4 * -(-file.size // manifest.block_bytes):
            return f"{file.name} has {file.size} bytes but {len(file.block_crc32c) // 4} block checksums"
    return ""
