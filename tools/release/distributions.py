"""The wheel and the source distribution."""

from __future__ import annotations

import tempfile
from pathlib import Path

from release import python_packages
from release.facts import Release


def build(sources: Path, release: Release) -> dict[str, bytes]:
    """Both, by file name, made with the locked hatchling, which writes no time but that of the commit."""
    with tempfile.TemporaryDirectory() as scratch:
        locked = Path(scratch, "build.txt")
        locked.write_text(python_packages.build_constraints(sources, "release"))
        made = Path(scratch, "dist")
        exact = (f"--build-constraints={locked}", "--require-hashes")
        time = {"SOURCE_DATE_EPOCH": str(release.epoch)}
        python_packages.uv("build", *exact, f"--out-dir={made}", folder=sources, environment=time)
        return {path.name: path.read_bytes() for path in sorted(made.iterdir()) if path.suffix in {".whl", ".gz"}}
