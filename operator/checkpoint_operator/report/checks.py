"""Named checks and chains of them: the first check of a chain that applies decides a condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from checkpoint_operator.model.observed import StoreFault
from checkpoint_operator.report.conditions import Judgement
from checkpoint_sidecar.core.api import ConditionStatus, ConditionType

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Quote:
    """A message that quotes an error or a figure that changes often, see ``Judgement.quotes``."""

    message: str


@dataclass(frozen=True, slots=True)
class Reasoned:
    """A message with its own reason, one of ``ConditionCheck.reasons``."""

    reason: str
    message: str


Answer = str | Quote | Reasoned | StoreFault | None
"""The message if the check applies, some with their own reason; None to continue with the next check."""


@dataclass(frozen=True, slots=True)
class ConditionCheck(Generic[Subject]):
    """A fact about a subject that decides a condition if it is true. The check has the name of the fact.

    Attributes:
        reasons: The reasons that it may give. A check gives the first one unless its answer has another.
        see: Words that replace the reasons in the documentation, or empty.
    """

    name: str
    status: ConditionStatus
    reasons: tuple[str, ...]
    answer: Callable[[Subject], Answer]
    see: str = ""

    def judge(self, kind: ConditionType, subject: Subject) -> Judgement | None:
        """Return the judgement of the condition if the check applies, or None."""
        match self.answer(subject):
            case None:
                return None
            case StoreFault() as fault:
                return Judgement(kind, self.status, fault.reason, fault.message, quotes=True)
            case Reasoned(reason, message):
                return Judgement(kind, self.status, reason, message)
            case Quote(message):
                return Judgement(kind, self.status, self.reasons[0], message, quotes=True)
            case message:
                return Judgement(kind, self.status, self.reasons[0], message)


def check(
    status: ConditionStatus, *reasons: str, see: str = ""
) -> Callable[[Callable[[Subject], Answer]], ConditionCheck[Subject]]:
    """Create a check from a function that returns its answer."""
    return lambda answer: ConditionCheck(answer.__name__, status, reasons, answer, see)


def otherwise(status: ConditionStatus, reason: str, message: str) -> ConditionCheck[Any]:
    """Return the check that ends a chain: it always applies."""
    return ConditionCheck("otherwise", status, (reason,), lambda _: message)


def first_answer(kind: ConditionType, chain: Iterable[ConditionCheck[Subject]], subject: Subject) -> Judgement:
    """Return the judgement of the first check that applies."""
    return next(judged for each in chain if (judged := each.judge(kind, subject)) is not None)
