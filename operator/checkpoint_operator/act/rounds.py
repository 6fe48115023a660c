"""The rounds of one pass: plan, carry out, and plan again from what is then true. Without Kubernetes.

One plan is not enough. A claim must be in the log before the policy, a snapshot must be verified before others retire,
and other writers append in between: so each round plans from the log as the previous round left it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias

from checkpoint_operator.act import execute
from checkpoint_operator.decide import plan
from checkpoint_operator.fairness.decisions import decided
from checkpoint_operator.fairness.store_threads import AbandonedError
from checkpoint_operator.gather.memory import Memory
from checkpoint_operator.gather.run_store import fault_from, timed_out
from checkpoint_operator.model.observed import Observed
from checkpoint_operator.model.outcome import ActionOutcome

MAX_ROUNDS = 6
"""Enough for claim, configure, verify, retire and purge. The next pass continues with the rest."""

RoundWork: TypeAlias = Callable[[], tuple[ActionOutcome, ...]]

logger = logging.getLogger(__name__)


async def run(
    observed: Observed, memory: Memory, *, blocking: Callable[[RoundWork], Awaitable[tuple[ActionOutcome, ...]]]
) -> Observed:
    """Carry out plan after plan until nothing is left, an action fails, or the time of a pass is over.

    Args:
        memory: Its session carries the plans out; it learns from each outcome.
        blocking: Calls a function that blocks, and raises ``AbandonedError`` if that does not return in time.

    Returns:
        What is true afterwards, with a fault if the store failed.
    """
    until = time.monotonic() + execute.ROUND_SECONDS
    for _ in range(MAX_ROUNDS):
        planned = await decided(plan.store_actions, observed)
        session = memory.session
        if not planned or session is None or time.monotonic() > until:
            break
        logger.info("%s: %s", observed.checkpoint.key, ", ".join(type(action).__name__ for action in planned))
        logger.debug("%s: %s", observed.checkpoint.key, planned)
        try:
            outcomes = await blocking(functools.partial(execute.carry_out, planned, session, owner=observed.owner))
        except AbandonedError:
            return replace(observed, fault=timed_out(session.settings))
        now = session.now()
        memory.note_outcomes(outcomes, now)
        observed = replace(observed, run=session.log.run, now=now, memory=memory.known())
        failed = next((outcome.error for outcome in outcomes if outcome.failed), None)
        if failed is not None:
            memory.session = None
            return replace(observed, fault=fault_from(failed))
    return observed
