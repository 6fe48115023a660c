"""Sharded saves and loads by two real ranks. What each check does is in ``dcp_ranks``; the ranks start once for all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.ranks import run_ranks

SCRIPT = Path(__file__).with_name("dcp_ranks.py")
CHECKS = re.findall(r"^@check\ndef (\w+)", SCRIPT.read_text(), flags=re.MULTILINE)

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Error text by check, for each rank."""
    return run_ranks(SCRIPT, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("check", CHECKS)
def test_two_ranks(check: str, results: list[dict[str, str]]) -> None:
    for rank, result in enumerate(results):
        assert not result[check], f"rank {rank}: {result[check]}"
