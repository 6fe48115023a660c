"""Compiles Python sources with the very Python that will run them, without installing it."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from release import archives
from release.archives import Member
from release.debian import PYTHON_MINOR
from release.facts import ReleaseError

Compiled = dict[tuple[str, str], bytes]
"""By path and SHA-256 of the source: a path may hold another text on another architecture."""

_SCRIPT = Path(__file__).with_name("compile_stream.py")
_NEEDED = ("bin", "lib", "lib64", "usr/bin", "usr/lib")
_TAG = f"cpython-3{PYTHON_MINOR}"


def compile_sources(members: Iterable[Member], system: Iterable[Member], python: str) -> Compiled:
    """Compile every source among `members` with `/usr/bin/<python>` of `system`, which must fit this machine.

    In one process and always in the same order: what two compiled files share in memory leaves traces in both.
    """
    sources = {_key(member): member for member in members if _is_source(member)}
    order = sorted(sources)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        needed = [member for member in system if member.path.startswith(_NEEDED)]
        with tarfile.open(fileobj=io.BytesIO(archives.tar(needed, 0))) as archive:
            archive.extractall(root, filter="tar")
        answer = _run(root, python, _stream(sources[key] for key in order))
    with tarfile.open(fileobj=io.BytesIO(answer)) as archive:
        contents = [_read(archive, entry) for entry in archive]
    return {key: content for key, content in zip(order, contents, strict=True) if content}


def beside(layer: Iterable[Member], compiled: Compiled) -> Iterator[Member]:
    """The compiled files of a layer's sources, where Python looks for them."""
    for member in layer:
        if _is_source(member) and (content := compiled.get(_key(member))):
            path = PurePosixPath(member.path)
            yield Member(str(path.parent / "__pycache__" / f"{path.stem}.{_TAG}.pyc"), content)


def _run(root: Path, python: str, stream: bytes) -> bytes:
    (loader,) = root.glob("usr/lib/*/ld-linux-*.so.*")
    command = [
        str(loader),
        "--library-path",
        str(loader.parent),
        str(root / "usr" / "bin" / python),
        "-S",
        str(_SCRIPT),
    ]
    environment = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, input=stream, env=environment, capture_output=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"compile the operator's sources: {done.stderr.decode()[-2000:]}. Read its message above.")
    return done.stdout


def _stream(sources: Iterable[Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in sources:
            entry = tarfile.TarInfo(member.path)
            entry.size = len(member.content)
            archive.addfile(entry, io.BytesIO(member.content))
    return buffer.getvalue()


def _read(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    source = archive.extractfile(entry)
    assert source is not None
    return source.read()


def _key(member: Member) -> tuple[str, str]:
    return member.path, hashlib.sha256(member.content).hexdigest()


def _is_source(member: Member) -> bool:
    return member.path.endswith(".py") and not member.link and not member.folder
