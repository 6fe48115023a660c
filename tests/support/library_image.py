"""The image of the library, made from this checkout for this machine, and a Python that needs it."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo import installation
from demo.training import wait_for
from localcluster.cluster import Cluster
from localcluster.imagebuild import Image
from localcluster.images import ARCHITECTURES
from release import distributions, facts, library
from release.__main__ import ROOT
from release.facts import Publisher

OURS = ("botocore", "checkpoint_operator", "crc32c", "cryptography", "msgspec", "tenacity", "tqdm")
"""Packages that a training image lacks which was not made for us. It has fsspec, with torch."""


def build(folder: Path) -> Image:
    """Make the image as a release does, and write it to a folder. Raises `ReleaseError`."""
    release = facts.gather(ROOT, Publisher("localhost", "https://code.example.com", "urn:builder:tests"), dirty=True)
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch, "sources")
        facts.stage(ROOT, sources, release.epoch)
        files = distributions.build(sources, release)
        wheel = next(content for name, content in files.items() if name.endswith(".whl"))
        built = library.build(sources, wheel, release, [ARCHITECTURES[platform.machine()]])
    archive = folder / "library.oci.tar"
    archive.write_bytes(built.archive)
    return Image(release.library, release.semantic, archive)


def bare_python(folder: Path) -> Path:
    """Make a Python environment like this one, without the library and most of what it needs."""
    folder.chmod(0o755)
    packages = Path(sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages")
    made = folder / packages.relative_to(sys.prefix)
    made.mkdir(parents=True)
    for path in packages.iterdir():
        if not path.name.startswith(OURS) and path.suffix != ".pth":
            (made / path.name).symlink_to(path)
    (folder / "pyvenv.cfg").write_text(Path(sys.prefix, "pyvenv.cfg").read_text())
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    return folder / "bin" / "python"


@contextmanager
def injected(cluster: Cluster, image: Image) -> Iterator[None]:
    """The operator that is installed gives labelled pods the library from this image."""
    for node in cluster.node_names:
        cluster.node(node).load_images(image.archive)
    library = {
        "enabled": True,
        "volume": "EmptyDir",  # containerd mounts images from version 2.1 on
        "image": {"repository": image.repository, "tag": image.tag, "pullPolicy": "Never"},
    }
    installation.upgrade(cluster, injection={"library": library})
    wait_for("the policy to inject", lambda: _injects(cluster), timeout=30)
    yield
    installation.upgrade(cluster, injection={"library": {"enabled": False}})
    wait_for("the policy to stop injecting", lambda: not _injects(cluster), timeout=30)


def _injects(cluster: Cluster) -> bool:
    name = f"{installation.RELEASE}-injection"
    return "inject-library" in cluster.kubectl("get", "mutatingadmissionpolicy", name, "--output=json")
