"""The image of the library, made from this checkout for this machine."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path

from localcluster.imagebuild import Image
from localcluster.images import ARCHITECTURES
from release import distributions, facts, library
from release.__main__ import ROOT
from release.facts import Publisher


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
