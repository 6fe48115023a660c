"""Keys in the bucket and their meaning. The only module that builds or parses a key.

Log numbers have 20 digits, so that a store lists the log in order. Attempts have at least 4, for readability; no code
relies on their order. Steps are not padded: torchtitan looks for step 1000 only in ``step-1000``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass

LOG_FOLDER = "_log/"
COMPACTION_FOLDER = "_log-compacted/"
PROBE_FOLDER = "_probe/"
CONFORMANCE_FOLDER = "_conformance/"
STEP_PREFIX = "step-"
PROGRESS_KEY = "_progress.json"
MARKER_KEY = "_run.json"
METADATA_NAME = ".metadata"
STOCK_METADATA_NAME = "stock.metadata"
MANIFEST_NAME = "manifest.json"

_LOG_KEY = re.compile(r"_log/([0-9]{20})\.json")
_COMPACTION_KEY = re.compile(r"_log-compacted/([0-9]{20})-([0-9]{20})\.gz")
_SAVE_FOLDER = re.compile(r"(?:step-(0|[1-9][0-9]{0,18})/)?([0-9]{4,19})-([a-z2-7]{8})(?:-([0-9a-f]{8}))?")
_SAVE_FILE = re.compile(r"__[0-9]{1,9}_s?[0-9]{1,9}\.(?:distcp|files)|(?:stock)?\.metadata|(?:manifest|files)\.json")
_SETTLED_FILE = re.compile(r"__(0|[1-9][0-9]{0,8})_s(0|[1-9][0-9]{0,8})\.distcp")
_POINTER = re.compile(r"step-(0|[1-9][0-9]{0,18})/\.metadata")
_PROBE_KEY = re.compile(r"(?:_probe|_conformance)/(?:[0-9a-f]{16}/.+|[a-z2-7]{8})")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,126}")
_NONCE_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def new_nonce() -> str:
    """Return eight characters of base 32: 40 random bits, so that two writers never share a save folder."""
    return "".join(secrets.choice(_NONCE_ALPHABET) for _ in range(8))


def shared_nonce(secret: str) -> str:
    """Return a nonce that all processes derive from the same text, so that they share a save folder."""
    digest = hashlib.blake2b(secret.encode(), digest_size=5).digest()
    return base64.b32encode(digest).decode().lower()


def log_key(number: int) -> str:
    """Return the key of log entry ``number`` (from 1)."""
    return f"{LOG_FOLDER}{number:020d}.json"


def log_number(key: str) -> int | None:
    """Return the entry's number, or None for other objects in the log's folder."""
    match = _LOG_KEY.fullmatch(key)
    return (int(match[1]) or None) if match else None


def compaction_key(first: int, last: int) -> str:
    """Return the key of the object that holds the log entries from ``first`` to ``last``."""
    return f"{COMPACTION_FOLDER}{first:020d}-{last:020d}.gz"


def compaction_range(key: str) -> tuple[int, int] | None:
    """Return ``(first, last)`` of a compaction, or None for other objects."""
    match = _COMPACTION_KEY.fullmatch(key)
    return (int(match[1]), int(match[2])) if match else None


def snapshot_id(step: int, attempt: int, nonce: str) -> str:
    """Return ``<step>-<attempt>-<nonce>``: unique in the bucket, readable in ``kubectl get``."""
    return f"{step}-{attempt}-{nonce}"


@dataclass(frozen=True, slots=True)
class SaveFolder:
    """The folder of one save, which is never written twice.

    Attributes:
        step: The step; None for a DCP drop-in directory, which is one checkpoint without its own step.
        attempt: Number of the attempt that wrote it.
        nonce: See ``new_nonce``.
        run: Short identity of the run that wrote it (``short_identity``); empty in folders of version 0.1.0 and before,
            whose names prove nothing.
    """

    step: int | None
    attempt: int
    nonce: str
    run: str = ""

    @property
    def path(self) -> str:
        """Path relative to the run's root, without a trailing slash."""
        name = f"{self.attempt:04d}-{self.nonce}" + (f"-{self.run}" if self.run else "")
        return name if self.step is None else f"step-{self.step}/{name}"

    @property
    def manifest(self) -> str:
        return f"{self.path}/{MANIFEST_NAME}"

    @property
    def metadata(self) -> str:
        return f"{self.path}/{METADATA_NAME}"

    @property
    def stock_metadata(self) -> str:
        """Key of the bytes to publish at ``pointer``, stored with the save so that no reader unpickles anything."""
        return f"{self.path}/{STOCK_METADATA_NAME}"


def pointer_key(step: int | None) -> str:
    """Return the key that torch's own reader opens for a step, or for a drop-in directory's only checkpoint (None)."""
    return METADATA_NAME if step is None else f"step-{step}/{METADATA_NAME}"


def pointer_step(key: str) -> int | None:
    """Return the step in the key of a stock ``.metadata``, or None for other keys."""
    match = _POINTER.fullmatch(key)
    return int(match[1]) if match else None


def short_identity(identity: str) -> str:
    """Return the part of a run's identity in folder names: the first 8 hex digits of the digest of log entry 1."""
    return identity[:8]


def is_probe(key: str) -> bool:
    """Return whether this is the key of one of our test objects."""
    return _PROBE_KEY.fullmatch(key) is not None


def is_save_file(name: str) -> bool:
    """Return whether saves write files with this name; other files in a save's folder are foreign."""
    return _SAVE_FILE.fullmatch(name) is not None


def parse_save_folder(path: str) -> SaveFolder:
    """Parse a ``SaveFolder.path``.

    Raises:
        ValueError: This module did not make the path; nothing under it may be read or deleted.
    """
    match = _SAVE_FOLDER.fullmatch(path)
    folder = match and SaveFolder(int(match[1]) if match[1] else None, int(match[2]), match[3], match[4] or "")
    # Two spellings of one number would be two folders in the store.
    if not folder or folder.attempt < 1 or folder.path != path:
        raise ValueError(f"{path!r} is not the folder of a save")
    return folder


def snapshot_in(path: str) -> str:
    """Return the id of the snapshot that a save in this folder becomes.

    Raises:
        ValueError: See ``parse_save_folder``.
    """
    folder = parse_save_folder(path)
    return snapshot_id(folder.step or 0, folder.attempt, folder.nonce)


def save_folder_of(key: str) -> SaveFolder | None:
    """Return the save that an object belongs to, or None for objects outside of saves."""
    folder, _, name = key.rpartition("/")
    try:
        return parse_save_folder(folder) if name else None
    except ValueError:
        return None


def settled_name(rank: int, number: int) -> str:
    """Return the name of a file of tensors that have not changed; see ``core.settled_files``."""
    return f"__{rank}_s{number}.distcp"


def settled_place(name: str) -> tuple[int, int] | None:
    """Return the rank and the number in the name of such a file, or None for other names."""
    match = _SETTLED_FILE.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def check_file_name(name: str) -> str:
    """Return ``name`` if it is a plain file name inside a save's folder.

    Raises:
        ValueError: It has a separator, is hidden, is too long or has characters that some store would reinterpret.
    """
    if name != METADATA_NAME and not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a file of a save")
    return name
