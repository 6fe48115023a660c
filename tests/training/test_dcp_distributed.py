"""Sharded saves and loads by two real ranks. What each check does is in ``dcp_ranks``; the ranks start once for all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("dcp_ranks.py")
CHECKS = re.findall(r"^@check\ndef (\w+)", SCRIPT.read_text(), flags=re.MULTILINE)

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Error text by check, for each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    commands = [[sys.executable, str(SCRIPT), str(rank), "2", str(folder)] for rank in range(2)]
    ranks = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=240)
            assert rank.returncode == 0, errors[-4000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("check", CHECKS)
def test_two_ranks(check: str, results: list[dict[str, str]]) -> None:
    for rank, result in enumerate(results):
        assert not result[check], f"rank {rank}: {result[check]}"
