"""Judges the conditions of a Checkpoint from observations. Pure.

Each condition is a chain of named checks; the first that applies decides. ``docs/conditions.md`` lists the reasons in
this order, generated from ``CHAINS``. Ready follows from the same faults as Stalled and StorageAvailable and is never
set independently.
"""

from __future__ import annotations

from collections.abc import Mapping

from checkpoint_operator.model.observed import Observed
from checkpoint_operator.report.checks import ConditionCheck, first_answer
from checkpoint_operator.report.conditions import Judgement
from checkpoint_operator.report.readiness import READY, STALLED, STORAGE_AVAILABLE
from checkpoint_operator.report.retention_health import FOREIGN_DATA, RETENTION_ENFORCED
from checkpoint_operator.report.training_health import PROTECTED, RESTORE_ENFORCED, SAVES_FAILING
from checkpoint_sidecar.core.api import ConditionType

CHAINS: Mapping[ConditionType, tuple[ConditionCheck[Observed], ...]] = {
    ConditionType.READY: READY,
    ConditionType.STORAGE_AVAILABLE: STORAGE_AVAILABLE,
    ConditionType.PROTECTED: PROTECTED,
    ConditionType.RESTORE_ENFORCED: RESTORE_ENFORCED,
    ConditionType.RETENTION_ENFORCED: RETENTION_ENFORCED,
    ConditionType.SAVES_FAILING: SAVES_FAILING,
    ConditionType.FOREIGN_DATA: FOREIGN_DATA,
    ConditionType.STALLED: STALLED,
}
"""The checks of each condition, in order of precedence; conditions in the order in which they are shown."""


def judge_conditions(observed: Observed) -> tuple[Judgement, ...]:
    """Return all conditions of a Checkpoint, in the order in which they are shown."""
    return tuple(first_answer(kind, chain, observed) for kind, chain in CHAINS.items())
