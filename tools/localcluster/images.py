"""The two images of the cluster, made here from nothing, and what a pod needs to run this machine's Python.

No image is ever pulled. Pods of the second image get programs and libraries from the host, read-only, by `hostPath`.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import site
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAUSE = "localhost/pause:1"
"""Holds a pod's namespaces open."""
EMPTY = "localhost/empty:1"
"""A root folder without a single program."""

NOBODY = 65532
"""The id of a user that is not root and, as in most images, has no name."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_FOLDERS = {"dev": 0o755, "proc": 0o755, "sys": 0o755, "run": 0o755, "var": 0o755, "usr": 0o755, "root": 0o755}
_SCRATCH = {"tmp": 0o1777}
_TOP_LEVEL = ("bin", "sbin", "lib", "lib64")
"""Links into /usr where that is merged (then so in the image), folders of their own elsewhere (then mounted)."""


@dataclass(frozen=True)
class PodPython:
    """Fragments of a pod's specification with which it runs a Python environment that has this package installed."""

    image: str
    python: str
    """The interpreter of that environment."""
    volumes: list[dict[str, Any]]
    volume_mounts: list[dict[str, Any]]
    pod: dict[str, Any] = field(default_factory=dict)
    """Further fields of the pod."""
    container: dict[str, Any] = field(default_factory=dict)
    """Further fields of the container."""
    environment: list[dict[str, str]] = field(
        default_factory=lambda: [
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
            {"name": "PYTHONUNBUFFERED", "value": "1"},
            {"name": "HOME", "value": "/tmp"},
        ]
    )


def host_python(*folders: Path, scratch: bool = True) -> PodPython:
    """What a pod needs to run the Python environment of this process.

    `folders` are further ones to mount read-only, at their own paths. With `scratch`, /tmp and /dev/shm are writable
    (volumes in memory); leave it out for pods that bring their own.
    """
    mounted = _outermost([*_system_folders(), *_python_folders(), *(folder.resolve() for folder in folders)])
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for position, folder in enumerate(mounted):
        volumes.append({"name": f"host-{position}", "hostPath": {"path": str(folder), "type": "Directory"}})
        mounts.append({"name": f"host-{position}", "mountPath": str(folder), "readOnly": True})
    if scratch:
        for name, path in (("tmp", "/tmp"), ("shm", "/dev/shm")):
            volumes.append({"name": f"scratch-{name}", "emptyDir": {"medium": "Memory"}})
            mounts.append({"name": f"scratch-{name}", "mountPath": path})
    # The cluster has no pod network; nothing in the product needs it.
    return PodPython(EMPTY, str(Path(sys.prefix, "bin", "python")), volumes, mounts, pod={"hostNetwork": True})


def _system_folders() -> list[Path]:
    """Programs, libraries, and the certificate authorities, without which TLS clients do not even start."""
    tops = [Path("/", name) for name in _TOP_LEVEL]
    optional = [*(top for top in tops if not top.is_symlink()), Path("/etc/ssl/certs")]
    return [Path("/usr"), *(folder for folder in optional if folder.is_dir())]


def _python_folders() -> list[Path]:
    """The virtual environment, the installation that it was made from, and the sources of editable packages."""
    folders = [Path(sys.prefix), Path(sys.base_prefix)]
    # The environment's interpreter may be a chain of links through further folders; each must exist in the pod.
    link = Path(sys.prefix, "bin", "python")
    while link.is_symlink():
        link = link.parent / link.readlink()
        folders.append(link.parent.parent)
    for packages in map(Path, site.getsitepackages()):
        lines = (line for file in packages.glob("*.pth") for line in file.read_text().splitlines())
        folders += [Path(line) for line in lines if line.startswith("/") and Path(line).is_dir()]
    return folders


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """`folders` without repetitions and without those that lie in another one."""
    distinct = sorted(set(folders))
    return [folder for folder in distinct if not any(other in folder.parents for other in distinct)]


def write_archive(path: Path, pause: Path) -> None:
    """Write an archive (OCI image layout) of both images, for `ctr images import`; `pause` is a static program."""
    layout = _Layout()
    layout.add(PAUSE, _layer({"pause": pause.read_bytes()}, {}), ["/pause"])
    links = {name: str(Path("/", name).readlink()) for name in _TOP_LEVEL if Path("/", name).is_symlink()}
    layout.add(EMPTY, _layer({name: text.encode() for name, text in _ETC.items()}, links), [])
    layout.write(path)


class _Layout:
    """An OCI image layout in the making; see the image specification of the Open Container Initiative."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._manifests: list[dict[str, Any]] = []

    def add(self, name: str, layer: bytes, entrypoint: list[str]) -> None:
        architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
        media_type = "application/vnd.oci.image.manifest.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self._blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode()),
            "layers": [self._blob("application/vnd.oci.image.layer.v1.tar", layer)],
        }
        descriptor = self._blob(media_type, json.dumps(manifest).encode())
        self._manifests.append({**descriptor, "annotations": {"io.containerd.image.name": name}})

    def write(self, path: Path) -> None:
        index = {"schemaVersion": 2, "manifests": self._manifests}
        files = {f"blobs/sha256/{digest.removeprefix('sha256:')}": blob for digest, blob in self._blobs.items()}
        files["oci-layout"] = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()
        files["index.json"] = json.dumps(index).encode()
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                _add_file(archive, name, content)

    def _blob(self, media_type: str, content: bytes) -> dict[str, Any]:
        digest = _digest(content)
        self._blobs[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _layer(files: dict[str, bytes], links: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in {**_FOLDERS, "etc": 0o755, **_SCRATCH}.items():
            _add(archive, name, tarfile.DIRTYPE, mode)
        for name in set(_TOP_LEVEL) - links.keys():
            _add(archive, name, tarfile.DIRTYPE, 0o755)
        for name, target in links.items():
            _add(archive, name, tarfile.SYMTYPE, 0o777, target)
        for name, content in files.items():
            _add_file(archive, name, content)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, kind: bytes, mode: int, target: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = kind, mode, target
    archive.addfile(entry)


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755
    archive.addfile(entry, io.BytesIO(content))
