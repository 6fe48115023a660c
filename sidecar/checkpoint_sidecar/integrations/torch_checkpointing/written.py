"""What the ranks have written for a checkpoint that is not committed yet: each file has a receipt beside its bytes."""

from __future__ import annotations

import errno
import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec

from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import ObjectNotFoundError, StoreError
from checkpoint_sidecar.core.manifest import File, block_bytes_for
from checkpoint_sidecar.engine.files import Bytes, FilePlan
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.engine.upload import upload_files
from checkpoint_sidecar.integrations.torch_checkpointing.attempt import SharedAttempt
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.parts import write_object

logger = logging.getLogger(__name__)

BLOCK_BYTES = block_bytes_for(0)

_PARALLEL_REQUESTS = 16
_MAX_RECEIPT_BYTES = 64 * 1024 * 1024


class Receipt(msgspec.Struct, frozen=True):
    """What a rank has stored: a file below the checkpoint, and the object that holds its bytes."""

    path: str
    file: File


class WrittenFiles:
    """Writes files and receipts of this rank, and finds the receipts of all ranks."""

    def __init__(self, store: Store, attempt: SharedAttempt, settings: EngineSettings) -> None:
        self._store = store
        self._attempt = attempt
        self._settings = settings
        self._numbers: dict[int, str] = {}
        self._latest = ""

    def write(self, step: int, path: str, contents: Iterable[Bytes]) -> None:
        """Store a file, and replace the one that this rank wrote under the same path before."""
        plan = FilePlan(f"__{self._attempt.rank}_{secrets.randbelow(10**9)}.files", tuple(contents))
        folder = self._folder(step)
        [file] = upload_files(self._store, folder, [plan], block_bytes=BLOCK_BYTES, settings=self._settings)
        self.discard(step, path)
        self._latest = self._key(step, path)
        write_object(self._store, self._latest, msgspec.json.encode(Receipt(path, file)))

    def discard(self, step: int, path: str) -> None:
        """Delete this rank's receipt of a path, if there is one, and what it is for."""
        key = self._key(step, path)
        if self._store.stat(key) is not None:
            self._store.delete(self.removable(step, {key: self._read(key)}))

    def discard_all(self, step: int) -> None:
        """Delete everything that any rank has written for a step."""
        self._store.delete([info.key for info in self._store.list(f"{self._folder(step)}/")])

    def any_of(self, step: int) -> bool:
        """Return whether a step has receipts of any rank."""
        # Every rank asks after every save, and one that has written is answered by a single request.
        if self._latest.startswith(f"{self._folder(step)}/") and self._store.stat(self._latest) is not None:
            return True
        return bool(self._keys(step))

    def of_all_ranks(self, step: int) -> dict[str, Receipt]:
        """Return the receipts of a step by their keys.

        Raises:
            OSError: Two ranks have written the same path.
        """
        keys = self._keys(step)
        with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="receipts") as pool:
            found = dict(zip(keys, pool.map(self._read, keys), strict=True))
        counts = Counter(each.path for each in found.values())
        if twice := [path for path, count in counts.items() if count > 1]:
            raise OSError(errno.EEXIST, "two ranks have written it, give each its own", min(twice))
        return found

    def removable(self, step: int, receipts: Mapping[str, Receipt]) -> list[str]:
        """Return the keys of receipts and of their files, except files that a manifest lists.

        Where there is a manifest already, its commit may have been made although it seemed to fail.
        """
        folder = self._attempt.folder(step)
        try:
            data = self._store.get(folder.manifest, max_bytes=manifests.MAX_MANIFEST_BYTES).data
        except ObjectNotFoundError:
            named: set[str] = set()
        else:
            manifest = manifests.decode(data, expected_digest=manifests.digest(data), subject=folder.manifest)
            named = {file.name for file in manifest.files}
        files = [each.file.name for each in receipts.values() if each.file.name not in named]
        return [*(f"{folder.path}/{name}" for name in files), *receipts]

    def delete(self, keys: Iterable[str]) -> None:
        """Delete receipts, or what they are for; what cannot be deleted stays."""
        try:
            self._store.delete(keys)
        except StoreError as error:
            logger.warning("receipts of a save stay beside it, and are harmless: %s", error)

    def _folder(self, step: int) -> str:
        return self._attempt.folder(step).path

    def _keys(self, step: int) -> list[str]:
        listed = self._store.list(f"{self._folder(step)}/")
        return [info.key for info in listed if info.key.endswith(".distcp")]

    def _read(self, key: str) -> Receipt:
        return msgspec.json.decode(self._store.get(key, max_bytes=_MAX_RECEIPT_BYTES).data, type=Receipt)

    def _key(self, step: int, path: str) -> str:
        number = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") % 10**9
        if self._numbers.setdefault(number, path) != path:
            raise OSError(errno.EEXIST, f"rename it: its digest is that of {self._numbers[number]}", path)
        return f"{self._folder(step)}/__{self._attempt.rank}_{number}.distcp"
