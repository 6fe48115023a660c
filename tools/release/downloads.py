"""Files that are pinned by a digest, kept under it in a cache that all checkouts share."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from release.facts import ReleaseError


def kept(sha256: str) -> bytes | None:
    """The file with this digest, or None while it has not been downloaded."""
    path = _folder() / sha256
    content = path.read_bytes() if path.exists() else b""
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def keep(file: Path, sha256: str) -> None:
    """Put a downloaded file into the cache. Raises `ReleaseError` if it is another one than the lock pins."""
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ReleaseError(
            f"check {file.name}: its SHA-256 is {found}, the lock says {sha256}. Compare it with another mirror."
        )
    _folder().mkdir(parents=True, exist_ok=True)
    partial = _folder() / f".{sha256}.{os.getpid()}.partial"
    partial.write_bytes(content)
    partial.replace(_folder() / sha256)


def _folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "checkpoint-operator" / "release"
