"""The public crash judge on our examples: whatever file event a kill meets, the next start ends as if nothing was.

Everyday a few kills of each job, ``CHECKPOINT_FAULTS=long`` all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
POINTS = 1000 if os.environ.get("CHECKPOINT_FAULTS") == "long" else 4

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(3600),
]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("example", ["train.py", "lightning_train.py", "transformers_train.py"])
def test_a_kill_at_a_file_event_costs_nothing(tmp_path: Path, example: str, ranks: int) -> None:
    pytest.importorskip("ckpt_chaos")
    output = tmp_path / "judged.json"
    options = [f"--only=(examples/{example})", f"--ranks={ranks}", f"--points={POINTS}", f"--output={output}"]
    command = [sys.executable, "benchmarks/crash_judge.py", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ((_, verdicts),) = json.loads(output.read_text()).items()
    assert set(verdicts) == {"PASS"}, done.stdout
    assert verdicts["PASS"] >= 4, "each of them was a kill"
