"""A committed snapshot, opened to export its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from checkpoint_sidecar.core.errors import CorruptSnapshotError
from checkpoint_sidecar.core.layout import METADATA_NAME
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.engine.delivery import Assembly, Want
from checkpoint_sidecar.engine.limits import LEAST_MEMORY_BYTES, EngineSettings
from checkpoint_sidecar.engine.read import Files
from checkpoint_sidecar.engine.verify import check_sizes, read_file
from checkpoint_sidecar.exports.archives import packed_bytes
from checkpoint_sidecar.exports.choosing import form_items, tied_names
from checkpoint_sidecar.exports.contents import SnapshotContents, StoredTensor, read_contents
from checkpoint_sidecar.exports.reading import Cast, SnapshotReading, locate_payloads
from checkpoint_sidecar.store.base import Store

_MOST_FORM_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class OpenSnapshot:
    """The stored files of a snapshot.

    Attributes:
        store: Opened at the run's root.
        folder: The save's folder in it.
    """

    store: Store
    folder: str
    manifest: Manifest
    settings: EngineSettings

    def contents(self, subject: str) -> SnapshotContents:
        """Return what is in it.

        Raises:
            CorruptSnapshotError, IncompatibleSnapshotError, StoreError: The metadata cannot be used.
        """
        data = read_file(
            self.store, self.folder, self.manifest, METADATA_NAME, level="Checksums", settings=self.settings
        )
        contents = read_contents(data, subject=subject)
        sizes = {file.name: file.size for file in self.manifest.files}
        places = [shard.place for each in contents.tensors.values() for shard in each.shards]
        for place in (*places, *contents.values.values()):
            if place.span.end > sizes.get(place.file, -1):
                cause = f"the metadata refers to {place.file!r}, where the manifest has no room"
                raise CorruptSnapshotError("read the metadata of", subject, cause, evidence="ManifestMismatch")
        return contents

    def ties(self, contents: SnapshotContents) -> list[tuple[str, ...]]:
        """Return the groups of tied names that the descriptions of modules list."""
        found: dict[tuple[str, ...], None] = {}
        wants = []
        for name in form_items(contents):
            place = contents.values[name]

            def note(data: memoryview, name: str = name) -> None:
                found.update(dict.fromkeys(tied_names(name, packed_bytes(bytes(data)) or b"")))

            if place.span.length <= _MOST_FORM_BYTES:
                wants.append(Want(place.file, place.span, Assembly(note)))
        self._files(self.settings).read(wants, staging_bytes=self.settings.memory_bytes // 2)
        return list(found)

    def check(self, names: set[str]) -> None:
        """Compare the sizes of files with those that were committed."""
        check_sizes(self.store, self.folder, [file for file in self.manifest.files if file.name in names])

    def reading(self, tensors: Iterable[StoredTensor], cast: Cast | None, subject: str) -> SnapshotReading:
        """Find where the bytes of tensors are, and return what reads them."""
        # The heads of archives are few bytes of many blocks: comparing them would read all of those blocks.
        heads = Files(self.store, self.folder, self.manifest, settings=self.settings, compare=False)
        # Each part that is written reads by itself.
        share = max(self.settings.memory_bytes // 8, LEAST_MEMORY_BYTES)
        settings = replace(self.settings, memory_bytes=share, connections=max(self.settings.connections // 4, 1))
        return SnapshotReading(
            self._files(settings), locate_payloads(heads, tensors, subject=subject), share // 2, cast
        )

    def _files(self, settings: EngineSettings) -> Files:
        return Files(self.store, self.folder, self.manifest, settings=settings)
