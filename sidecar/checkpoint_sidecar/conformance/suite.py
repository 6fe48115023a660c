"""What a store has to keep for checkpoints to be safe in it, as checks that can be run against any store.

The same checks serve three callers: the probe before a run trusts its store (a few of them), the command
``python -m checkpoint_sidecar.conformance`` for a store that was never tested, and this package's own tests.
"""

from __future__ import annotations

import contextlib
import enum
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from checkpoint_sidecar.core.errors import AccessDeniedError, BucketNotFoundError, RequestRefusedError, StoreError
from checkpoint_sidecar.core.layout import CONFORMANCE_FOLDER
from checkpoint_sidecar.store.base import RestsOnFilesystem, Store

OPERATION = "try out the store"
USE_ANOTHER = (
    "Use a filesystem that does (docs/storage.md lists some), "
    "or an s3://, gs://, az:// or file:// URL without a filesystem."
)


class BrokenPromiseError(StoreError):
    """The store answered, and not as it has to. Do not use it."""

    retryable = False


class PromiseVerdict(enum.StrEnum):
    """What became of a check.

    Attributes:
        KEPT: The store keeps the promise.
        BROKEN: It does not.
        UNANSWERED: The store could not be asked: a right is missing, or it failed.
    """

    KEPT = "Kept"
    BROKEN = "Broken"
    UNANSWERED = "Unanswered"


@dataclass(slots=True)
class Trial:
    """A folder of a store for one check, and what was put there.

    Attributes:
        store: The store to try out.
        other: Another client of the same store, as another process would have it.
        folder: Holds nothing else; ends with a slash.
    """

    store: Store
    other: Store
    folder: str
    _keys: list[str] = field(default_factory=list)

    def key(self, name: str) -> str:
        """A key in the folder, which ``clean`` removes."""
        self._keys.append(f"{self.folder}{name}")
        return self._keys[-1]

    def expect(self, kept: bool, otherwise: str) -> None:
        """Check that the promise was kept.

        Raises:
            BrokenPromiseError: It was not; ``otherwise`` says what happened instead.
        """
        if kept:
            return
        hint = "Do not use this store."
        if isinstance(self.store, RestsOnFilesystem):
            otherwise = f"{self.store.filesystem_name} does not keep what checkpoints need: {otherwise}"
            hint = USE_ANOTHER
        raise BrokenPromiseError(OPERATION, f"{self.store.url}/{self.folder}", otherwise, hint)

    def clean(self) -> None:
        """Delete what may have been put there. Needs no listing: that may be what is missing."""
        self.store.delete(self._keys)


@dataclass(frozen=True, slots=True)
class Check:
    """One promise.

    Attributes:
        promise: What is checked, as a sentence that is true of a good store.
        why: What goes wrong without it.
        run: Asks the store; raises ``BrokenPromiseError`` or another ``StoreError``.
        probed: Whether a run makes the check before it trusts its store.
    """

    promise: str
    why: str
    run: Callable[[Trial], None]
    probed: Literal["Never", "Always", "OnFilesystems"] = "Never"


@dataclass(frozen=True, slots=True)
class PromiseFinding:
    """What a check found, in how many seconds; ``detail`` says what went wrong."""

    check: Check
    verdict: PromiseVerdict
    detail: str
    seconds: float


def examine(store: Store, other: Store, checks: Sequence[Check]) -> Iterator[PromiseFinding]:
    """Run checks one after the other, each in a fresh folder, which is emptied before its finding is returned.

    A store that cannot be asked the first question is asked no other one.

    Args:
        store: The store to examine.
        other: Another client of the same store.
        checks: The checks, the most basic one first.

    Raises:
        ConfigurationError: No client can be made of the settings.
    """
    root = f"{CONFORMANCE_FOLDER}{secrets.token_hex(8)}/"
    reachable = True
    for number, check in enumerate(checks):
        if not reachable:
            yield PromiseFinding(
                check, PromiseVerdict.UNANSWERED, "The store could not be asked the first question.", 0.0
            )
            continue
        finding = _examine(check, Trial(store, other, f"{root}{number:02d}/"))
        reachable = number > 0 or finding.verdict is not PromiseVerdict.UNANSWERED
        yield finding


def _examine(check: Check, trial: Trial) -> PromiseFinding:
    start = time.monotonic()
    verdict, detail = PromiseVerdict.KEPT, ""
    try:
        with cleaned(trial):
            check.run(trial)
    except StoreError as error:
        unanswered = error.retryable or isinstance(error, (AccessDeniedError, BucketNotFoundError, RequestRefusedError))
        verdict, detail = PromiseVerdict.UNANSWERED if unanswered else PromiseVerdict.BROKEN, str(error)
    return PromiseFinding(check, verdict, detail, time.monotonic() - start)


@contextlib.contextmanager
def cleaned(trial: Trial) -> Iterator[None]:
    """Empty the trial's folder at the end.

    Raises:
        StoreError: The folder was not emptied, and nothing else went wrong before.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(StoreError):
            trial.clean()
        raise
    trial.clean()
