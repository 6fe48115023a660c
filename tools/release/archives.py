"""Archives whose bytes depend on what is in them and on nothing else."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Member:
    """A file, a link or a folder in an archive."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    link: str = ""
    """The target; then this is a symbolic link."""
    folder: bool = False


def folder(path: str, mode: int = 0o755) -> Member:
    return Member(path, mode=mode, folder=True)


def read_tree(root: Path, prefix: str = "") -> list[Member]:
    """The files and links below `root`, with `prefix` before their paths. Of their modes only "executable" counts."""
    found = []
    for path in sorted(root.rglob("*")):
        name = f"{prefix}{path.relative_to(root).as_posix()}"
        if path.is_symlink():
            found.append(Member(name, link=os.readlink(path), mode=0o777))
        elif path.is_file():
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            found.append(Member(name, path.read_bytes(), mode))
    return found


def below(prefix: str, members: Iterable[Member]) -> list[Member]:
    return [replace(member, path=f"{prefix}{member.path}") for member in members]


def tar(members: Iterable[Member], epoch: int) -> bytes:
    """An uncompressed archive, sorted by path, owned by root, of one time. Folders above members are added."""
    entries = {member.path: member for member in members}
    for path in list(entries):
        for parent in PurePosixPath(path).parents[:-1]:
            entries.setdefault(str(parent), folder(str(parent)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(entries):
            archive.addfile(_header(entries[path], epoch), io.BytesIO(entries[path].content))
    return buffer.getvalue()


def compress(content: bytes) -> bytes:
    """Gzip without a name and a time. Its bytes depend on the version of zlib; what it holds does not."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def _header(member: Member, epoch: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(member.path)
    header.mode, header.mtime, header.size = member.mode, epoch, len(member.content)
    if member.folder:
        header.type = tarfile.DIRTYPE
    elif member.link:
        header.type, header.linkname = tarfile.SYMTYPE, member.link
    return header
