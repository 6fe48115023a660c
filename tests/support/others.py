"""Other people's data under the prefix of a run: each function writes one kind of it into a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from checkpoint_sidecar.attempt.directory_save import DirectorySave
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.manifest import BLOCK_BYTES, Manifest, digest, encode
from checkpoint_sidecar.engine.upload import upload_bytes
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.parts import write_object
from support.builders import OTHER_OWNER, nonce_of
from support.trainers import Trainer


class Below:
    """A store opened below the root of another one, as other people open theirs."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self.url = f"{store.url}/{folder.rstrip('/')}"

    def __getattr__(self, verb: str) -> Callable[..., object]:
        return getattr(self._store, verb)  # type: ignore[no-any-return]

    def put(self, key: str, data: bytes) -> None:
        self._store.put(self._folder + key, data)

    def put_if_absent(self, key: str, data: bytes) -> None:
        self._store.put_if_absent(self._folder + key, data)

    def get(self, key: str, *, max_bytes: int) -> object:
        return self._store.get(self._folder + key, max_bytes=max_bytes)

    def read_into(self, key: str, start: int, buffers: object) -> None:
        self._store.read_into(key if key.startswith(self._folder) else self._folder + key, start, buffers)  # type: ignore[arg-type]

    def stat(self, key: str) -> object:
        return self._store.stat(self._folder + key)

    def list(self, prefix: str = "", *, after: str = "") -> object:
        found = self._store.list(self._folder + prefix, after=self._folder + after if after else "")
        return (replace(info, key=info.key.removeprefix(self._folder)) for info in found)

    def upload(self, key: str, size: int) -> object:
        return self._store.upload(self._folder + key, size)

    def delete(self, keys: object) -> None:
        self._store.delete([self._folder + key for key in keys])  # type: ignore[attr-defined]


def drop_in(store: Store, folder: str) -> None:
    """What ``dcp.save(checkpoint_id=…)`` writes, without torch."""
    place = Below(store, folder)
    target = DirectorySave(place, overwrite=True, world_size=1)  # type: ignore[arg-type]
    save = target.begin()
    files = []
    for name in (".metadata", "__0_0.distcp", "stock.metadata"):
        key, data = f"{save.folder.path}/{name}", f"{name} of {save.snapshot}".encode()
        files.append(upload_bytes(place, key, data, block_bytes=BLOCK_BYTES))  # type: ignore[arg-type]
    manifest = Manifest(save.snapshot, save.step, save.folder.attempt, world_size=1, files=tuple(files))
    write_object(place, save.folder.manifest, encode(manifest))  # type: ignore[arg-type]
    target.commit(save, manifest, digest(encode(manifest)))


def nested_run(store: Store, folder: str) -> None:
    trainer = Trainer(Below(store, folder), OTHER_OWNER)  # type: ignore[arg-type]
    trainer.start()
    trainer.commit(100 * trainer.number)
    place = SaveFolder(200, 1, nonce_of(7), trainer.run.short_identity)
    Below(store, folder).put(f"{place.path}/__0_0.distcp", b"being written")


def stock(store: Store, folder: str) -> None:
    store.put(f"{folder}.metadata", b"pickled by torch")
    store.put(f"{folder}__0_0.distcp", b"written by torch")


def old_leftover(store: Store, folder: str) -> None:
    """Write a file of a run of version 0.1.0, or of a drop-in of that version without its log: both look alike."""
    store.put(f"{folder}0001-aaaaaaaa/__0_0.distcp", b"half")


def note(store: Store, folder: str) -> None:
    store.put(f"{folder}notes.txt", b"remember")


def log_without_a_run(store: Store, folder: str) -> None:
    store.put(f"{folder}_log/00000000000000000001.json", b"{}")
    store.put(f"{folder}0001-aaaaaaaa-01234567/__0_0.distcp", b"half")


WAYS = (drop_in, nested_run, stock, old_leftover, note, log_without_a_run)
