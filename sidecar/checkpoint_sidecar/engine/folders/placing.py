"""Restores a folder: everything is written beside it first, and takes its place only when it is complete.

The new files are written into the work folder, and then moved into place by renames. What was in the folder before is
removed if the latest snapshot of this folder has it, and is otherwise set aside in the work folder: it may be half
written, and would mislead a trainer. No link is followed. A process that is killed in between leaves the next start to
begin again.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from checkpoint_sidecar.core import units
from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError
from checkpoint_sidecar.core.folder_index import WORK_FOLDER, IndexEntry
from checkpoint_sidecar.engine.delivery import Want
from checkpoint_sidecar.engine.folders.tree import (
    Fingerprint,
    TrainerFolder,
    no_space,
    read_record,
    relative_files,
    remove,
)
from checkpoint_sidecar.engine.requests import ByteRange

logger = logging.getLogger(__name__)

SET_ASIDE = "set-aside"
_RESERVE_BYTES = 16 * 1024 * 1024
_FLUSHED_BYTES = 1024 * 1024
"""Size from which a file is flushed, which reports errors of the disk. For thousands of small ones it takes too long.
After a crash of the node, the next start restores everything again."""
_ENLARGE = "Enlarge the volume, or remove what is not needed from it."


class IncomingFolder:
    """Files of a snapshot on their way into a folder.

    Args:
        name: Of the folder inside the work folder; the same on all ranks that share it.
        entries: Everything that belongs into the folder.
    """

    def __init__(self, folder: TrainerFolder, name: str, entries: Sequence[IndexEntry]) -> None:
        self._folder = folder
        self._place = folder.work / name
        self._entries = entries
        self._sinks: list[FileSink] = []

    def prepare(self) -> None:
        """Check that there is room, and create the folders. Called by one of the ranks that share the folder.

        Raises:
            ConfigurationError: The disk has too little room.
        """
        needed = sum(entry.size for entry in self._entries) + _RESERVE_BYTES
        if self._free() < needed:
            self._make_room()
        if (free := self._free()) < needed:
            cause = f"the files need {units.size(needed)}, and {units.size(free)} are free"
            raise ConfigurationError("restore the files in", str(self._folder.root), cause, _ENLARGE)
        with self._writing():
            self._place.mkdir()
            for entry in self._entries:
                path = self._place / entry.path
                (path if entry.kind == "Folder" else path.parent).mkdir(parents=True, exist_ok=True)

    def wants(self, entries: Iterable[IndexEntry]) -> list[Want]:
        """Return what to read for some of the files."""
        found = []
        for entry in entries:
            if entry.kind == "File" and entry.size:
                sink = FileSink(self._place / entry.path, entry, self._folder.root)
                self._sinks.append(sink)
                found.append(Want(entry.object, ByteRange(entry.offset, entry.size), sink))
        return found

    def finish(self) -> dict[str, Fingerprint]:
        """Move everything into place. Called by one rank, when all have read their share.

        Returns:
            The restored files.
        """
        with self._writing():
            for entry in self._entries:
                if entry.kind == "File" and not entry.size:
                    descriptor = os.open(self._place / entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                    os.fchmod(descriptor, entry.mode | stat.S_IRUSR | stat.S_IWUSR)
                    os.close(descriptor)
                elif entry.kind == "Link":
                    os.symlink(entry.target, self._place / entry.path)
            set_aside(self._folder)
            _merge(self._place, self._folder.root, self._folder.work / SET_ASIDE)
            remove(self._place)
            files = (entry for entry in self._entries if entry.kind == "File")
            return {each.path: Fingerprint.of(os.lstat(self._folder.root / each.path)) for each in files}

    def discard(self) -> None:
        """Remove what was written. Never raises."""
        for sink in self._sinks:
            sink.close()
        remove(self._place)

    def _free(self) -> int:
        return shutil.disk_usage(self._folder.root).free

    def _make_room(self) -> None:
        """Remove what may be removed: what was set aside before, and files that a snapshot has."""
        remove(self._folder.work / SET_ASIDE)
        _remove_stored(self._folder, self._folder.root)

    def _writing(self) -> _Writing:
        return _Writing(self._folder.root)


class _Writing:
    """Turns errors of the filesystem into ours."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise unwritable(self._root, error) from error


def unwritable(root: Path, error: OSError) -> CheckpointError:
    """Return the error for files that cannot be written."""
    hint = _ENLARGE if no_space(error) else "Check the rights on the folder and the volume."
    return ConfigurationError("restore the files in", str(root), f"{error.strerror or error}", hint)


class FileSink:
    """A file that is being restored; see ``Sink``.

    Args:
        root: The trainer's folder, for messages.
    """

    def __init__(self, place: Path, entry: IndexEntry, root: Path) -> None:
        self._place = place
        self._entry = entry
        self._root = root
        self._left = entry.size
        self._descriptor = -1
        self._lock = threading.Lock()

    def accept(self, offset: int, data: memoryview) -> None:
        """Write verified bytes; the last ones complete the file, and flush a large one to the disk."""
        try:
            with self._lock:
                if self._descriptor < 0:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                    self._descriptor = os.open(self._place, flags, 0o600)
                descriptor = self._descriptor
            rest, place = data.cast("B"), offset
            while rest:
                count = os.pwrite(descriptor, rest, place)
                rest, place = rest[count:], place + count
            with self._lock:
                self._left -= data.nbytes
                complete = not self._left
            if complete:
                os.fchmod(descriptor, self._entry.mode | stat.S_IRUSR | stat.S_IWUSR)
                if self._entry.size >= _FLUSHED_BYTES:
                    os.fsync(descriptor)
                with self._lock:
                    self._descriptor = -1
                # On network filesystems, a full disk may show only here.
                os.close(descriptor)
        except OSError as error:
            raise unwritable(self._root, error) from error

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


def set_aside(folder: TrainerFolder) -> None:
    """Empty a folder: remove links and files that a snapshot has, and set all others aside, in place of earlier ones.

    What the folder excludes stays where it is.
    """
    aside = folder.work / SET_ASIDE
    remove(aside)
    _remove_stored(folder, folder.root)
    aside.mkdir(exist_ok=True)
    _move_away(folder, "", aside)
    for path, info in list(relative_files(aside)):
        if stat.S_ISLNK(info.st_mode):
            (aside / path).unlink()
    files = sorted(path for path, _ in relative_files(aside))
    if not files:
        remove(aside)
        return
    logger.warning(
        "%s that the latest snapshot does not have were set aside in %s until the next restore: %s",
        units.counted(len(files), "file"),
        aside,
        ", ".join(files[:4]) + (", …" if len(files) > 4 else ""),
    )


def _remove_stored(folder: TrainerFolder, root: Path) -> None:
    for path, fingerprint in read_record(folder).items():
        place = root / path
        with suppress(OSError):
            if place.resolve() == place and Fingerprint.of(os.lstat(place)) == fingerprint:
                place.unlink()


def _move_away(folder: TrainerFolder, prefix: str, aside: Path) -> bool:
    """Move what is below a folder, and return whether something stays because it is excluded."""
    stays = False
    for child in list(os.scandir(folder.root / prefix)):
        path = f"{prefix}/{child.name}" if prefix else child.name
        if path == WORK_FOLDER:
            continue
        if folder.excludes(path):
            stays = True
        elif child.is_dir(follow_symlinks=False):
            if _move_away(folder, path, aside):
                stays = True
            else:
                with suppress(OSError):
                    os.rmdir(child.path)
        else:
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            os.rename(child.path, aside / path)
    return stays


def _merge(source: Path, target: Path, aside: Path) -> None:
    """Move the children of one folder into another one; what is in the way is set aside."""
    for child in list(os.scandir(source)):
        place = target / child.name
        if not os.path.lexists(place):
            os.rename(child.path, place)
        elif child.is_dir(follow_symlinks=False) and place.is_dir() and not place.is_symlink():
            _merge(Path(child.path), place, aside)
        else:
            aside.mkdir(parents=True, exist_ok=True)
            os.rename(place, aside / f"{child.name}.{uuid.uuid4().hex[:8]}")
            os.rename(child.path, place)


def shared_out(entries: Sequence[IndexEntry], ranks: Sequence[int]) -> Mapping[int, list[IndexEntry]]:
    """Return which of the ranks that share a folder reads which files: equally many bytes, each object by one rank."""
    objects: dict[str, list[IndexEntry]] = {}
    for entry in entries:
        if entry.size:
            objects.setdefault(entry.object, []).append(entry)
    shares: dict[int, list[IndexEntry]] = {rank: [] for rank in ranks}
    load = dict.fromkeys(ranks, 0)
    for members in sorted(objects.values(), key=lambda each: -sum(entry.size for entry in each)):
        rank = min(ranks, key=lambda rank: (load[rank], rank))
        shares[rank].extend(members)
        load[rank] += sum(entry.size for entry in members)
    return shares
