"""All errors that the library raises on purpose.

Each has four parts and reads ``<operation> <object>: <cause>. <next step>``. They are ordinary ``Exception``s (torch's
own ``CheckpointException`` is a ``BaseException`` and slips through ``except Exception``), are named by the caller's
next move, and never contain secrets: they may contain only keys, URLs without credentials and numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

Evidence: TypeAlias = Literal["None", "ChecksumMismatch", "SizeMismatch", "MissingObject", "ManifestMismatch"]

NO_EVIDENCE: Final = "None"
"""The evidence of an interruption, which says nothing about the snapshot."""


class CheckpointError(Exception):
    """Base of all errors of this package.

    Args:
        operation: The operation that failed, as a verb phrase that its object completes: ``"save step 100 to"``.
        subject: The object of the operation, usually a URL or a key.
        cause: The cause, in one sentence.
        hint: The next step for the reader.
    """

    def __init__(self, operation: str, subject: str, cause: str, hint: str = "") -> None:
        self.operation = operation
        self.subject = subject
        self.cause = cause
        self.hint = hint
        super().__init__(operation, subject, cause, hint)

    def __str__(self) -> str:
        text = f"{self.operation} {self.subject}: {self.cause}"
        return f"{text}. {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Callable[..., CheckpointError], tuple[str, ...]]:
        # Ranks send errors to each other by pickle; keep the four parts, not just the message.
        return type(self), (self.operation, self.subject, self.cause, self.hint)


class ConfigurationError(CheckpointError):
    """The URL, the environment or an argument is invalid, and must be changed manually."""


class CheckpointExistsError(CheckpointError):
    """The step is already saved and the overwrite policy is Never."""


class PrefixClaimedError(CheckpointError):
    """The prefix belongs to another run; writing there would mix two runs."""


class FencedError(CheckpointError):
    """A newer attempt of this run has started: stop saving and exit; do not retry in this process."""


class LogReplacedError(FencedError):
    """The run's log was emptied or replaced while this process used it. Nothing was written to the new one."""


class RestoreError(CheckpointError):
    """Snapshots were committed, but none could be restored; training must not start at step 0."""


class LogMissingError(RestoreError):
    """The log of an existing run is missing or shorter than before; a new run must not begin here."""


class RestoreInterrupted(CheckpointError):  # noqa: N818 - it is an interruption, tried again at the next start
    """The restore stopped for a reason unrelated to the snapshot; the next start tries it again."""


class RunNotFoundError(CheckpointError):
    """There is no run under this URL, or it was deleted."""


class SnapshotNotFoundError(CheckpointError):
    """The run has no such snapshot, or the data of that snapshot was deleted."""


class AmbiguousSelectorError(CheckpointError):
    """A selector is the start of the ids of several snapshots."""


class RunManagedError(CheckpointError):
    """An operator manages the run: change its Checkpoint object instead."""


class ChangeRefusedError(CheckpointError):
    """The rules of the run do not allow the change. Nothing was written."""


class ForeignObjectError(CheckpointError):
    """This run did not write the object, and leaves it unchanged."""


class CorruptSnapshotError(CheckpointError):
    """Stored bytes differ from the committed ones.

    Attributes:
        evidence: The kind of difference. The log records it; only evidence counts towards quarantine.
    """

    def __init__(self, operation: str, subject: str, cause: str, hint: str = "", *, evidence: Evidence) -> None:
        super().__init__(operation, subject, cause, hint)
        self.evidence: Evidence = evidence

    def __reduce__(self) -> tuple[Callable[..., CheckpointError], tuple[str, ...]]:
        constructor = functools.partial(type(self), evidence=self.evidence)
        return constructor, (self.operation, self.subject, self.cause, self.hint)


class IncompatibleSnapshotError(CheckpointError):
    """The snapshot is intact but does not fit the model: a tensor is missing, or its shape or dtype differs."""


class SharedFilesLostError(CheckpointError):
    """Files that a save shares may be deleted or damaged. It is not committed; the next one stores them again."""


class UntrustedSnapshotError(CheckpointError):
    """The snapshot holds pickled classes that are not on the allow-list; none of their code was executed."""


class TransferCancelledError(CheckpointError):
    """A save or restore was canceled because its process has to end; it has no effect."""


class SaveStalledError(CheckpointError):
    """A save was abandoned because it did not end in time. Unlike after other errors, it may still be committed."""


class StateCopyError(CheckpointError):
    """An object of the training state could not be read or copied to host memory."""


class RankLostError(CheckpointError):
    """Another rank of this training has ended, or does not answer."""


class LogError(CheckpointError):
    """The run log cannot be trusted: a gap, a broken chain, an unreadable entry or a newer major format."""


class StoreError(CheckpointError):
    """The object store refused a request or failed.

    Attributes:
        retryable: Whether the same call may succeed later without any change.
    """

    retryable = True


class UnreliableReadError(StoreError):
    """Each read of the same bytes returned different ones, never the committed ones.

    This is not evidence against the stored object: the network or memory in between may be at fault. It interrupts a
    start; if that repeats, a start continues from the previous snapshot.
    """


class CutOffError(StoreError):
    """The store cut an answer off or sent another part, in the last of several attempts."""


class ObjectNotFoundError(StoreError):
    """The key does not exist."""

    retryable = False


class ObjectExistsError(StoreError):
    """A put-if-absent failed: the key has an object, perhaps this caller's own, see ``UnknownOutcomeError``."""

    retryable = False


class UnknownOutcomeError(StoreError):
    """A write may have taken effect or may do so later (timeout, lost reply, connection reset)."""


class AccessDeniedError(StoreError):
    """Credentials are missing, wrong, expired or not allowed to do this."""

    retryable = False


class DeletionRefusedError(AccessDeniedError):
    """The store does not let this client delete: a missing right, or a lock on the object. It may work otherwise."""


class BucketNotFoundError(StoreError):
    """The bucket or container of the URL does not exist; it is never created implicitly."""

    retryable = False


class NoConditionalWriteError(StoreError):
    """The store does not honour create-if-absent, without which commits are not atomic."""

    retryable = False


class ObjectTooLargeError(StoreError):
    """The object is larger than the caller's limit for reading into memory."""

    retryable = False


class TruncatedObjectError(StoreError):
    """The object is shorter than expected: it ends before the end of the requested range."""

    retryable = False


class RequestRefusedError(StoreError):
    """The store understood the request and refuses it, for a reason that a retry does not change."""

    retryable = False
