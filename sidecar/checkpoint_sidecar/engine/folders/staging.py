"""Keeps the files of a folder as they are, while a save uploads them and the trainer continues.

Large files get a second name (a hard link) in the work folder, which costs nothing: the trainer may delete or replace
its own. A file that it writes to in place would change in both, so each is compared before and after the upload, and
one that changed fails the save. Small files are copied: logs and state files are often rewritten in place. Where the
filesystem has no hard links, all files are copied.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from checkpoint_sidecar.core.errors import StateCopyError
from checkpoint_sidecar.core.folder_index import IndexEntry
from checkpoint_sidecar.core.folder_plan import ListedEntry
from checkpoint_sidecar.engine.files import Bytes
from checkpoint_sidecar.engine.folders.tree import Fingerprint, TrainerFolder, remove, unreadable_folder, walk
from checkpoint_sidecar.engine.meter import TransferMeter

COPIED_BYTES = 256 * 1024
"""Smaller files are copied to memory."""
MOST_COPIED_BYTES = 64 * 1024 * 1024
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS)
_CLOCK_SECONDS = 0.02
"""Longest step of the clock that stamps files: a change within it may leave the time of a file as it was."""
_TRIES = 5


@dataclass(frozen=True, slots=True)
class StagedFolder:
    """The contents of a folder at one moment.

    Attributes:
        name: Of the folder with the links, inside the work folder.
        listing: What was found.
        links: Name of each link, by the path of the file.
        fingerprints: By path, when it was staged.
        copies: Contents of the files that were copied to memory.
    """

    name: str
    listing: list[ListedEntry] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    copies: dict[str, bytes] = field(default_factory=dict)

    def shared(self) -> StagedFolder:
        """Return what other ranks that share the folder need to read it."""
        return replace(self, copies={})


def stage(
    folder: TrainerFolder,
    paths: Sequence[str] | None,
    stored: Mapping[str, tuple[Fingerprint, IndexEntry]],
) -> StagedFolder:
    """Keep everything below a folder as it is now.

    Args:
        paths: Files and folders to keep; None for all.
        stored: The files of the previous snapshot, as they were then, with their places in it.

    Raises:
        ConfigurationError, StateCopyError: See ``walk``; or a file changed meanwhile.
    """
    staged = StagedFolder(f"staged-{uuid.uuid4().hex[:12]}")
    place = folder.work / staged.name
    place.mkdir()
    try:
        newest, copied = 0, 0
        for found, info in walk(folder, paths):
            entry = found
            if entry.kind == "File":
                staged.fingerprints[entry.path] = Fingerprint.of(info)
            if entry.kind == "File" and entry.size:
                fingerprint = Fingerprint.of(info)
                old = stored.get(entry.path)
                if old is not None and old[0] == fingerprint and old[1].mode == entry.mode:
                    entry = replace(entry, unchanged=old[1])
                if entry.size <= COPIED_BYTES and copied + entry.size <= MOST_COPIED_BYTES:
                    data, fingerprint = _read(folder.root / entry.path)
                    entry = replace(entry, size=len(data), in_memory=bool(data))
                    staged.copies[entry.path] = data
                    copied += len(data)
                else:
                    link = str(len(staged.links))
                    fingerprint = _link(folder.root / entry.path, place / link, fingerprint)
                    staged.links[entry.path] = link
                    newest = max(newest, fingerprint.modified_ns)
                staged.fingerprints[entry.path] = fingerprint
            staged.listing.append(entry)
    except BaseException as error:
        remove(place)
        if isinstance(error, OSError):
            raise unreadable_folder(folder, error) from error
        raise
    # A later change must get another time than this one.
    age = (time.time_ns() - newest) / 1e9
    if 0 <= age < _CLOCK_SECONDS:
        time.sleep(_CLOCK_SECONDS - age)
    return staged


def _read(path: Path) -> tuple[bytes, Fingerprint]:
    """Return the contents of a small file, from one moment."""
    for _ in range(_TRIES):
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            before = Fingerprint.of(os.fstat(file.fileno()))
            data = file.read(before.size)
            if len(data) == before.size and Fingerprint.of(os.fstat(file.fileno())) == before:
                return data, before
    raise changed(str(path))


def _link(path: Path, link: Path, found: Fingerprint) -> Fingerprint:
    try:
        os.link(path, link, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(path, link, follow_symlinks=False)
        if Fingerprint.of(os.lstat(path)) != found:
            raise changed(str(path)) from None
        # The copy's own time is what must not change from now on; the trainer's file is known by its own.
        os.utime(link, ns=(found.modified_ns, found.modified_ns))
        return found
    linked = Fingerprint.of(os.lstat(link))
    if linked != found:
        raise changed(str(path))
    return found


def changed(path: str) -> StateCopyError:
    """Return the error for a file that was written to while it was saved."""
    return StateCopyError(
        "save the file",
        path,
        "it changed while it was saved",
        "The trainer writes to it in place: name it in exclude=..., or save when the trainer has finished with it.",
    )


@dataclass(frozen=True, slots=True)
class StagedReader:
    """Reads staged files.

    Attributes:
        place: The folder with the links.
        root: The trainer's folder, for messages.
    """

    place: Path
    root: Path
    staged: StagedFolder

    def segment(self, path: str) -> FileSegment | Bytes:
        """Return a file's contents, for an upload."""
        data = self.staged.copies.get(path)
        if data is not None:
            return Bytes(data)
        link = str(self.place / self.staged.links[path])
        return FileSegment(link, str(self.root / path), self.staged.fingerprints[path].size)

    def check(self, path: str) -> None:
        """Raise an error if a file was written to since it was staged.

        Raises:
            StateCopyError: It was.
        """
        link = self.staged.links.get(path)
        if link is None:
            return
        try:
            now = Fingerprint.of(os.lstat(self.place / link))
        except OSError as error:
            raise unreadable(str(self.root / path), error) from error
        if not now.same_contents(self.staged.fingerprints[path]):
            raise changed(str(self.root / path))

    def contents(self, path: str) -> Iterator[memoryview]:
        """Yield a file's contents piece by piece."""
        segment = self.segment(path)
        for start in range(0, segment.size, _READ_BYTES):
            yield segment.view(start, min(start + _READ_BYTES, segment.size))

    def digest(self, path: str, meter: TransferMeter) -> bytes:
        """Return the SHA-256 of a file's contents.

        Args:
            meter: Counts the bytes; may cancel.
        """
        digest = hashlib.sha256()
        meter.expect(self.staged.fingerprints[path].size)
        for data in self.contents(path):
            meter.check()
            digest.update(data)
            meter.add(len(data))
        self.check(path)
        return digest.digest()


_READ_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileSegment:
    """The bytes of a file, read when they are needed.

    Attributes:
        place: The link.
        path: The trainer's file, for messages.
    """

    place: str
    path: str
    size: int

    @property
    def in_memory(self) -> bool:
        return False

    def view(self, start: int, stop: int) -> memoryview:
        buffer = memoryview(bytearray(stop - start))
        try:
            descriptor = os.open(self.place, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                done = 0
                while done < len(buffer):
                    count = os.preadv(descriptor, [buffer[done:]], start + done)
                    if not count:
                        raise changed(self.path)
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unreadable(self.path, error) from error
        return buffer


def unreadable(path: str, error: OSError) -> StateCopyError:
    """Return the error for a staged file that cannot be read."""
    return StateCopyError("save the file", path, f"it cannot be read: {error.strerror or error}")
