"""Two builds of a commit give the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from release.__main__ import ROOT

pytestmark = [pytest.mark.release, pytest.mark.timeout(900)]


def build(folder: Path, *, umask: int, **environment: str) -> str:
    """Clone the commit into `folder`, build it there, and return the checksums."""
    old = os.umask(umask)
    try:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        variables = os.environ | {"PYTHONPATH": str(folder / "tools")} | environment
        subprocess.run([sys.executable, "-m", "release"], cwd=folder, env=variables, check=True)
    finally:
        os.umask(old)
    return (folder / "build" / "dist" / "SHA256SUMS").read_text()


def test_folder_time_umask_zone_and_hash_seed_leave_no_trace(tmp_path: Path) -> None:
    one = build(tmp_path / "one", umask=0o022, TZ="Asia/Tokyo", PYTHONHASHSEED="1", LC_ALL="C")
    two = build(tmp_path / "deeper" / "two", umask=0o077, TZ="America/Lima", PYTHONHASHSEED="2", LC_ALL="C.UTF-8")
    assert one.count("\n") == 17
    assert one.splitlines() == two.splitlines()
