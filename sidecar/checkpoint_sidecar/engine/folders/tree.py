"""Walks a folder without following links, and never into our own work folder."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError, StateCopyError
from checkpoint_sidecar.core.folder_index import WORK_FOLDER, check_path, check_target
from checkpoint_sidecar.core.folder_plan import ListedEntry

_LOST_BY_NFS = ".nfs*"
_RECORD = "stored.json"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What changes when a file is replaced or written."""

    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> Fingerprint:
        return cls(info.st_ino, info.st_size, info.st_mtime_ns)

    def same_contents(self, other: Fingerprint) -> bool:
        """Return whether a file on another node, or under another name, has not been written since."""
        return (self.size, self.modified_ns) == (other.size, other.modified_ns)


@dataclass(frozen=True, slots=True)
class TrainerFolder:
    """The folder that a trainer writes its checkpoints into.

    Attributes:
        path: The folder; created if it does not exist.
        exclude: Patterns of paths below it that are neither uploaded nor touched by a restore, such as ``"runs"`` or
            ``"*.log"``; ``*`` matches ``/`` too. What they match is the trainer's alone.
    """

    path: str | os.PathLike[str]
    exclude: Sequence[str] = ()

    @classmethod
    def of(cls, given: str | os.PathLike[str] | TrainerFolder) -> TrainerFolder:
        """Return a folder given in one of the accepted forms."""
        return given if isinstance(given, TrainerFolder) else cls(given)

    @classmethod
    def with_prefix(cls, path: str | os.PathLike[str], prefix: str) -> TrainerFolder:
        """Return a folder that excludes every name that does not begin with a prefix.

        Args:
            prefix: Letters, digits and hyphens.
        """
        shorter = [prefix[:length] for length in range(len(prefix))]
        return cls(path, (*shorter[1:], *(f"{start}[!{prefix[len(start)]}]*" for start in shorter)))

    @property
    def root(self) -> Path:
        return Path(os.path.realpath(self.path))

    @property
    def work(self) -> Path:
        """Our own folder below it."""
        return self.root / WORK_FOLDER

    def excludes(self, path: str) -> bool:
        """Return whether a path is excluded by itself; what is below an excluded folder is excluded too."""
        name = path.rpartition("/")[2]
        return any(fnmatch.fnmatchcase(path, pattern.rstrip("/")) for pattern in self.exclude) or fnmatch.fnmatchcase(
            name, _LOST_BY_NFS
        )

    def open(self) -> None:
        """Create the folder and our own below it, and remove what killed processes left there.

        Raises:
            ConfigurationError: One of them is not a folder, or cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.work.mkdir(exist_ok=True)
            is_folder = stat.S_ISDIR(os.lstat(self.work).st_mode)
        except OSError as error:
            raise ConfigurationError("use the folder", str(self.path), _cause(error)) from error
        if not is_folder:
            raise ConfigurationError("use the folder", str(self.work), "it is not a folder", "Remove it.")

    def clean(self) -> None:
        """Remove what earlier processes left half done."""
        for each in os.scandir(self.work):
            if each.name.startswith(("staged-", "incoming-", "probe-")):
                remove(Path(each.path))


def walk(folder: TrainerFolder, paths: Sequence[str] | None = None) -> Iterator[tuple[ListedEntry, os.stat_result]]:
    """Yield what is below a folder, without what it excludes.

    Args:
        paths: Files and folders to visit; None for all.

    Raises:
        ConfigurationError: Something cannot be stored: a socket, a device, a link that leaves the folder, a name.
        StateCopyError: Something vanished meanwhile, or cannot be read.
    """
    try:
        if paths is None:
            yield from _below(folder, "")
            return
        for path in dict.fromkeys(path.strip("/") for path in paths):
            if problem := check_path(path):
                raise _refused(folder, path, problem)
            above = [path[:place] for place, character in enumerate(path) if character == "/"]
            if any(folder.root.joinpath(each).is_symlink() for each in above):
                raise _refused(folder, path, "it is below a link")
            yield from _visit(folder, path, os.lstat(folder.root / path))
    except OSError as error:
        raise unreadable_folder(folder, error) from error


def unreadable_folder(folder: TrainerFolder, error: OSError) -> StateCopyError:
    """Return the error for a folder that cannot be read, or in which something vanished meanwhile."""
    return StateCopyError(
        "save the files in",
        str(folder.root),
        _cause(error),
        "Save after the trainer has written its checkpoint on every rank, and before it changes the folder again.",
    )


def _below(folder: TrainerFolder, prefix: str) -> Iterator[tuple[ListedEntry, os.stat_result]]:
    found = False
    with os.scandir(folder.root / prefix) as children:
        for child in sorted(children, key=lambda child: child.name):
            path = f"{prefix}/{child.name}" if prefix else child.name
            if path == WORK_FOLDER or folder.excludes(path):
                continue
            if problem := check_path(path):
                raise _refused(folder, path, problem)
            found = True
            yield from _visit(folder, path, child.stat(follow_symlinks=False))
    if prefix and not found:
        yield ListedEntry(prefix, "Folder"), os.lstat(folder.root / prefix)


def _visit(folder: TrainerFolder, path: str, info: os.stat_result) -> Iterator[tuple[ListedEntry, os.stat_result]]:
    mode = info.st_mode
    if stat.S_ISDIR(mode):
        yield from _below(folder, path)
    elif stat.S_ISREG(mode):
        yield ListedEntry(path, "File", mode & 0o777, info.st_size), info
    elif stat.S_ISLNK(mode):
        target = os.readlink(folder.root / path)
        if os.path.isabs(target) and f"{target}/".startswith(f"{folder.root}/"):
            target = os.path.relpath(target, (folder.root / path).parent)
        if problem := check_target(path, target):
            raise _refused(folder, path, problem)
        yield ListedEntry(path, "Link", target=target), info
    else:
        raise _refused(folder, path, "it is neither a file nor a folder nor a link")


def _refused(folder: TrainerFolder, path: str, cause: str) -> CheckpointError:
    return ConfigurationError(
        "save the file", str(folder.root / path), cause, "Name it in exclude=..., or move it out of the folder."
    )


def _cause(error: OSError) -> str:
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")


def no_space(error: BaseException) -> bool:
    """Return whether a write failed because the disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def write_record(folder: TrainerFolder, stored: Mapping[str, Fingerprint]) -> None:
    """Note which files a snapshot has, so that a later restore may remove them. Never raises."""
    entries = {path: [each.inode, each.size, each.modified_ns] for path, each in stored.items()}
    place = folder.work / _RECORD
    with suppress(OSError):
        place.with_suffix(".new").write_text(json.dumps(entries))
        os.replace(place.with_suffix(".new"), place)


def read_record(folder: TrainerFolder) -> dict[str, Fingerprint]:
    """Return the files that a snapshot has. An unreadable record counts as empty."""
    try:
        entries = json.loads((folder.work / _RECORD).read_text())
        return {str(path): Fingerprint(*map(int, each)) for path, each in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def relative_files(root: Path) -> Iterable[tuple[str, os.stat_result]]:
    """Yield every file and link below a folder, with its path."""
    for place, _, names in os.walk(root):
        for name in names:
            path = os.path.join(place, name)
            yield os.path.relpath(path, root), os.lstat(path)
