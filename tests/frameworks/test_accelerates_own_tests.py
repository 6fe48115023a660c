"""The tests of checkpoints that accelerate ships, with ``save_state`` and ``load_state`` done by our snapshots."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from frameworks.forked_gangs import trained
from frameworks.sdists import REPOSITORY, sources

OUT_OF_REACH = {
    "test_checkpoint_deletion": "it counts local folders; what a run keeps is decided by its retention",
    "test_map_location": "it needs an accelerator",
}
"""Their tests that say nothing about snapshots, and why."""


def test_accelerates_own_tests_of_checkpoints_pass(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/test_state_checkpointing.py",
        "-p",
        "frameworks.accelerate_in_front",
    ]
    options = ["-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tmp_path}", f"--junitxml={report}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, *options], cwd=sources("accelerate"), env=environment, capture_output=True, text=True
    )
    cases = list(ElementTree.parse(report).iter("testcase"))
    passed = [case for case in cases if not list(case)]
    others = {name for case in cases if list(case) for name in OUT_OF_REACH if case.attrib["name"].startswith(name)}
    assert others == set(OUT_OF_REACH), done.stdout
    assert len(passed) == 14, done.stdout


@pytest.mark.distributed
def test_the_script_of_accelerates_package_resumes_with_the_same_accuracy_and_learning_rate(tmp_path: Path) -> None:
    script = Path(__file__).parent / "accelerate_checkpointing.py"
    ours = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY / "tests")}
    printed = trained(script, tmp_path, "--partial_train_epoch", 1, folder=tmp_path, **ours)
    assert "epoch 0:" in printed
    resumed = trained(script, tmp_path, "--resume_from_checkpoint", tmp_path / "epoch_0", folder=tmp_path, **ours)
    assert "resumed checkpoint performance:" in resumed
    assert not list(tmp_path.rglob("*.safetensors"))[1:], "of the model that it started from"
