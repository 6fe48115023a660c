"""`make bench` in a tiny size: the figures are worthless, but every part of it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ONE_LAYER = 121_643_008

pytestmark = [pytest.mark.store, pytest.mark.distributed]


def test_the_benchmark_runs_and_writes_its_figures(tmp_path: Path) -> None:
    output = tmp_path / "engine.json"
    options = ["--quick", f"--model-bytes={ONE_LAYER}", f"--output={output}"]
    selection = [f"--only={section}" for section in ("transfer", "resharding", "share")]
    selection += [f"--system={system}" for system in ("ours", "checked", "ceiling")]
    command = [sys.executable, "benchmarks/engine.py", *options, *selection]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CRC32C + bare sockets" in done.stdout
    report = json.loads(output.read_text())
    for direction in ("save", "load"):
        for system in ("ours", "checked", "ceiling"):
            assert report[direction][system]["gb_per_s"] > 0
            assert report[direction][system]["cpu_s_per_gb"] > 0
        share = report["share"]["ours"][direction]
        assert share["ceiling"].startswith("checked-")
        assert share["speed"] > 0
        assert share["cpu"] > 0
    assert report["ceiling_gb_per_s"] > 0
    assert report["extra_memory_mb"] > 0
    assert report["amplification"]["same"] >= 1
    assert report["amplification"]["reshard"] >= 1
