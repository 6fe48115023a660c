"""Two real ranks that stop and continue as fresh processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.ranks import run_ranks

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).with_name("resume_ranks.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return run_ranks(SCRIPT, 2, tmp_path_factory.mktemp("resume"))


@pytest.mark.parametrize("check", re.findall(r"@check\ndef (\w+)", SCRIPT.read_text()))
def test_two_ranks(results: list[dict[str, str]], check: str) -> None:
    for errors in results:
        assert not errors[check], errors[check]
