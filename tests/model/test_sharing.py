"""Files that snapshots share are never lost and never leak, whatever interleaves; without any one rule, they are.

``CHECKPOINT_FAULTS=long`` plays 30,000 other schedules each time; without it, the same 1,500 are played every time.
"""

from __future__ import annotations

import os
import random

import pytest

from model.sharing import RULES, explore, without

LONG = os.environ.get("CHECKPOINT_FAULTS") == "long"
SCHEDULES = 30_000 if LONG else 1_500
SEED = f"{random.randrange(2**32)}" if LONG else "sharing"
MOST_WITHOUT_A_RULE = 3_000


@pytest.mark.timeout(7200 if LONG else 300)
def test_shared_files_are_never_lost_and_never_leak() -> None:
    found = explore(SCHEDULES, SEED)
    assert dict(found.broken) == {}, SEED
    # One that never shares, purges, releases or refuses would prove nothing by being content.
    assert found.shared > 2 * SCHEDULES
    assert found.purges > SCHEDULES
    assert found.releases > SCHEDULES / 10
    assert found.refused_by_old > SCHEDULES / 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_a_promise_falls(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(rule, monkeypatch)
    assert explore(MOST_WITHOUT_A_RULE, "without", rule, until_broken=True).bad
