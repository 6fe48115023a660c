"""Converts exceptions of foreign code to a form that can be logged and raised on other ranks."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from checkpoint_sidecar.core.errors import CheckpointError

INTERRUPTS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Exceptions that end a call without being a failure."""


def described(error: BaseException) -> str:
    """Return the class and message of any exception."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - its __str__ is as foreign as it is
        return type(error).__name__


def portable(error: BaseException, *, operation: str, subject: str) -> Exception:
    """Return the error if it is ordinary and can be sent to other ranks, else an equivalent error of ours.

    A panic of native code is neither: ``except Exception`` does not catch it, and it cannot be pickled.
    """
    if isinstance(error, Exception):
        # Exceptions of third parties fail here in every possible way.
        with suppress(Exception):
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own object, just dumped
            return error
    return CheckpointError(operation, subject, described(error))


@contextmanager
def raising_portable(operation: str, subject: str) -> Iterator[None]:
    """Run foreign code so that its exceptions can be raised on other ranks too, see ``portable``."""
    try:
        yield
    except INTERRUPTS:
        raise
    except BaseException as error:
        portable_error = portable(error, operation=operation, subject=subject)
        if portable_error is error:
            raise
        raise portable_error from None
