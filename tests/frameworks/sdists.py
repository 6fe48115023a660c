"""Source distributions of the packages that are tested: some have the framework's own tests, which wheels leave out."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def sources(package: str) -> Path:
    """Return the folder of a package's sources, of the locked version and digest; downloaded once."""
    lock = tomllib.loads((REPOSITORY / "uv.lock").read_text())
    [locked] = [each for each in lock["package"] if each["name"] == package]
    folder = REPOSITORY / "build" / "sdists" / f"{package}-{locked['version']}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            wanted = Path(scratch, "wanted.txt")
            wanted.write_text(f"{package}=={locked['version']} --hash={locked['sdist']['hash']}\n")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            options = [f"--no-binary={package}", "--require-hashes", f"--dest={scratch}", f"--requirement={wanted}"]
            subprocess.run([*pip, *options], check=True, cwd=scratch)
            [archive] = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(scratch, filter="data")
            next(each for each in Path(scratch).iterdir() if each.is_dir()).rename(folder)
    return folder
