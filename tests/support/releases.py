"""Reads what a release consists of."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Layout:
    """An OCI layout in an archive; whatever is read from it is compared with its digest."""

    def __init__(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            self._files = {entry.name: _content(tar, entry) for entry in tar if entry.isfile()}
        assert json.loads(self._files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
        (self.top,) = json.loads(self._files["index.json"])["manifests"]

    def read(self, descriptor: dict[str, Any]) -> bytes:
        content = self._files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert len(content) == descriptor["size"]
        assert f"sha256:{sha256(content)}" == descriptor["digest"]
        return content

    def json(self, descriptor: dict[str, Any]) -> Any:
        return json.loads(self.read(descriptor))


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    source = tar.extractfile(entry)
    assert source is not None
    return source.read()
