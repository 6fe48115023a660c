"""Named checks and chains of them: the first check of a chain that applies decides a condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from checkpoint_operator.model.observed import Observed, StoreFault
from checkpoint_operator.report.conditions import Judgement
from checkpoint_sidecar.core.api import ConditionStatus, ConditionType, Reason


@dataclass(frozen=True, slots=True)
class Quote:
    """A message that quotes an error or a figure that changes often, see ``Judgement.quotes``."""

    message: str


Answer = str | Quote | StoreFault | None
"""The message if the check applies, or a fault with its own reason; None to continue with the next check."""


@dataclass(frozen=True, slots=True)
class ConditionCheck:
    """A fact that decides a condition if it is true. The check has the name of the fact.

    Attributes:
        reasons: The reasons that it may give. A check gives the first one unless it returns a fault.
        see: Words that replace the reasons in the documentation, or empty.
    """

    name: str
    status: ConditionStatus
    reasons: tuple[Reason, ...]
    answer: Callable[[Observed], Answer]
    see: str = ""

    def judge(self, kind: ConditionType, observed: Observed) -> Judgement | None:
        """Return the judgement of the condition if the check applies, or None."""
        match self.answer(observed):
            case None:
                return None
            case StoreFault() as fault:
                return Judgement(kind, self.status, fault.reason, fault.message, quotes=True)
            case Quote(message):
                return Judgement(kind, self.status, self.reasons[0], message, quotes=True)
            case message:
                return Judgement(kind, self.status, self.reasons[0], message)


def check(
    status: ConditionStatus, *reasons: Reason, see: str = ""
) -> Callable[[Callable[[Observed], Answer]], ConditionCheck]:
    """Create a check from a function that returns its answer."""
    return lambda answer: ConditionCheck(answer.__name__, status, reasons, answer, see)


def otherwise(status: ConditionStatus, reason: Reason, message: str) -> ConditionCheck:
    """Return the check that ends a chain: it always applies."""
    return ConditionCheck("otherwise", status, (reason,), lambda _: message)


def first_answer(kind: ConditionType, chain: Iterable[ConditionCheck], observed: Observed) -> Judgement:
    """Return the judgement of the first check that applies."""
    return next(judged for each in chain if (judged := each.judge(kind, observed)) is not None)
