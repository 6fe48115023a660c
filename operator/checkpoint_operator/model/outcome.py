"""How an action ended, and what its error means for the rest of the pass."""

from __future__ import annotations

from dataclasses import dataclass

from checkpoint_operator.model.actions import Action, PublishPointer, SurveyPrefix, Verify
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.belongings import Survey
from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    CheckpointError,
    DeletionRefusedError,
    ForeignObjectError,
    IncompatibleSnapshotError,
    ObjectTooLargeError,
    RequestRefusedError,
    StoreError,
    UnreliableReadError,
)


class BudgetError(StoreError):
    """A pass would exceed the budget of one Checkpoint.

    Attributes:
        reason: The reason of the condition that reports it.
    """

    retryable = False

    def __init__(self, operation: str, subject: str, cause: str, hint: str = "", *, reason: Reason) -> None:
        super().__init__(operation, subject, cause, hint)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ActionOutcome:
    """How one action ended. ``error`` is None if it is done or had become unnecessary.

    Attributes:
        survey: What else lies under the prefix, if the action surveyed it.
    """

    action: Action
    error: CheckpointError | None = None
    survey: Survey | None = None

    @property
    def harmless(self) -> bool:
        """Whether only a report depends on the action."""
        return isinstance(self.action, SurveyPrefix)

    @property
    def left_alone(self) -> bool:
        """Whether the object to change turned out not to be the run's."""
        return isinstance(self.error, ForeignObjectError)

    @property
    def refused(self) -> bool:
        """Whether a working store did not allow it: a deletion, or replacing a locked pointer.

        A pointer that cannot be checked, because it or the manifest is larger than any real one, counts too.
        """
        undeleted = isinstance(self.error, DeletionRefusedError)
        locked = isinstance(self.error, (AccessDeniedError, RequestRefusedError))
        beyond_memory = isinstance(self.error, BudgetError) and self.error.reason is Reason.OBJECT_TOO_LARGE
        too_large = beyond_memory or isinstance(self.error, ObjectTooLargeError)
        return undeleted or (isinstance(self.action, PublishPointer) and (locked or too_large))

    @property
    def failed(self) -> bool:
        """Whether the store failed, so that further actions are pointless for now."""
        expected = self.refused or self.left_alone or self.harmless or self.unverifiable
        return self.error is not None and not expected

    @property
    def unverifiable(self) -> str:
        """Why this one snapshot could not be compared with its manifest, or an empty string."""
        own = isinstance(self.error, (IncompatibleSnapshotError, UnreliableReadError))
        return str(self.error) if own and isinstance(self.action, Verify) else ""
