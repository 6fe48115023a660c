"""Every error the library raises on purpose.

Each says four things: the operation, the object it was done to, the cause, and what to do next. They are ordinary
``Exception``s (torch's own ``CheckpointException`` is a ``BaseException`` and slips through ``except Exception``), are
named by the caller's next move, and never hold a secret: put keys, URLs without credentials and numbers in them only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, TypeAlias

Evidence: TypeAlias = Literal["None", "ChecksumMismatch", "SizeMismatch", "MissingObject", "ManifestMismatch"]


class CheckpointError(Exception):
    """Base of all errors of this package.

    Args:
        operation: What was being done, as a verb phrase: ``"save step 100"``.
        subject: The object it was done to, usually a URL or a key.
        cause: What went wrong, one sentence.
        hint: What the reader should do next.
    """

    def __init__(self, operation: str, subject: str, cause: str, hint: str = "") -> None:
        self.operation = operation
        self.subject = subject
        self.cause = cause
        self.hint = hint
        super().__init__(operation, subject, cause, hint)

    def __str__(self) -> str:
        text = f"{self.operation}: {self.subject}: {self.cause}"
        return f"{text}. {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Callable[..., CheckpointError], tuple[str, ...]]:
        # Ranks send errors to each other by pickle; keep the four parts, not just the message.
        return type(self), (self.operation, self.subject, self.cause, self.hint)


class ConfigurationError(CheckpointError):
    """The URL, the environment or an argument cannot work; a human must change it."""


class CheckpointExistsError(CheckpointError):
    """The step is already saved and the overwrite policy is Never."""


class PrefixClaimedError(CheckpointError):
    """The prefix belongs to another run; writing there would mix two runs."""


class FencedError(CheckpointError):
    """A newer attempt of this run has started: stop saving and exit, do not retry in this process."""


class LogReplacedError(FencedError):
    """The run's log was emptied or replaced while this process used it; nothing was written into what is there now."""


class RestoreError(CheckpointError):
    """No snapshot could be restored although some were committed; training must not start at step 0."""


class LogMissingError(RestoreError):
    """There was a run here and its log is gone, or shorter than it was; that is not the beginning of a new run."""


class RestoreInterrupted(CheckpointError):  # noqa: N818 - it is an interruption, tried again at the next start
    """The restore stopped for a reason that says nothing about the snapshot; the next start tries it again."""


class ForeignObjectError(CheckpointError):
    """The object was not written by this run, and is left alone."""


class CorruptSnapshotError(CheckpointError):
    """Stored bytes are not what was committed.

    Attributes:
        evidence: How they differ. The log records it; only evidence counts towards quarantine.
    """

    def __init__(self, operation: str, subject: str, cause: str, hint: str = "", *, evidence: Evidence) -> None:
        super().__init__(operation, subject, cause, hint)
        self.evidence: Evidence = evidence

    def __reduce__(self) -> tuple[Callable[..., CheckpointError], tuple[str, ...]]:
        constructor = functools.partial(type(self), evidence=self.evidence)
        return constructor, (self.operation, self.subject, self.cause, self.hint)


class IncompatibleSnapshotError(CheckpointError):
    """The snapshot is whole but does not fit the model: a tensor is missing, or its shape or dtype differs."""


class UntrustedSnapshotError(CheckpointError):
    """The snapshot holds pickled classes that are not on the allow-list; nothing of them was executed."""


class TransferCancelledError(CheckpointError):
    """A save or restore was called off because its process has to end; nothing of it counts."""


class SaveStalledError(CheckpointError):
    """A save was given up because it did not end in time. Unlike after other errors it may still be committed."""


class StateCopyError(CheckpointError):
    """An object of the training state could not be read, or copied to host memory."""


class RankLostError(CheckpointError):
    """Another rank of this training has ended, or does not answer."""


class LogError(CheckpointError):
    """The run log cannot be trusted: a gap, a broken chain, an unreadable entry or a newer major format."""


class StoreError(CheckpointError):
    """The object store refused or failed.

    Attributes:
        retryable: Whether the same call may succeed later without any change.
    """

    retryable = True


class UnreliableReadError(StoreError):
    """Each read of the same bytes gave other ones, none of them what was committed.

    That is no evidence against the stored object: the network or the memory in between may be at fault. A start is
    interrupted by it, and if that repeats it continues from the snapshot before.
    """


class CutOffError(StoreError):
    """The store broke off in the middle of an answer, or gave another part, in the last of several tries."""


class ObjectNotFoundError(StoreError):
    """The key does not exist."""

    retryable = False


class ObjectExistsError(StoreError):
    """Put-if-absent lost: the key already holds an object (perhaps this caller's own, see ``UnknownOutcomeError``)."""

    retryable = False


class UnknownOutcomeError(StoreError):
    """A write may or may not have happened, now or later (timeout, lost reply, connection reset)."""


class AccessDeniedError(StoreError):
    """Credentials are missing, wrong, expired or not allowed to do this."""

    retryable = False


class BucketNotFoundError(StoreError):
    """The bucket or container of the URL does not exist; it is never created implicitly."""

    retryable = False


class NoConditionalWriteError(StoreError):
    """The store does not honour create-if-absent, without which commits are not atomic."""

    retryable = False


class ObjectTooLargeError(StoreError):
    """The object is larger than the caller is willing to read into memory."""

    retryable = False


class TruncatedObjectError(StoreError):
    """The object ends before the range that was asked for: it is shorter than the caller expected."""

    retryable = False


class RequestRefusedError(StoreError):
    """The store understood the request and refuses it, for a reason that repeating it does not change."""

    retryable = False
