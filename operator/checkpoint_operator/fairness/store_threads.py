"""Blocking calls to object stores, each in a thread of its own and with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

from checkpoint_operator.fairness.slots import TenantSlot

GRACE_SECONDS = 5.0
"""Extra time in which a thread that notices its deadline can raise its own error."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class AbandonedError(Exception):
    """The thread did not return in time. It keeps running and occupies its slot until it returns."""


class ClientPanicError(Exception):
    """A client raised a ``BaseException``, as Rust extensions do when they panic."""


def release_frames(error: BaseException) -> None:
    """Free what the local variables of an error's traceback hold; its lines stay.

    Errors are kept until they are reported, and some of those frames hold a manifest of 64 MiB. Traceback and error
    refer to each other, so without this only the garbage collector would free them.
    """
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        traceback.clear_frames(following.__traceback__)
        chain.append(following)
        following = following.__cause__ or following.__context__


async def run_in_thread(call: Callable[[], T], *, seconds: float, slot: TenantSlot | None = None) -> T:
    """Return the result of a blocking call, made in the context of the caller.

    Threads are not pooled: one that never returns takes no place from others. They are daemons, so that it does not
    keep the process from exiting either.

    Raises:
        AbandonedError: There was no result after ``seconds`` and a little more.
        ClientPanicError: It raised a ``BaseException``.
        Exception: What it raised.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def ended(result: T | None, error: BaseException | None) -> None:
        if slot is not None:
            slot.release()
        if future.done():
            logger.info("an abandoned call has returned")
        elif error is None:
            future.set_result(result)  # type: ignore[arg-type]
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:
            # Its text is the client's and may quote anything.
            future.set_exception(ClientPanicError(f"{type(error).__module__}.{type(error).__qualname__}"))

    def work() -> None:
        result: T | None = None
        raised: BaseException | None = None
        try:
            result = context.run(call)
        except BaseException as error:  # noqa: BLE001 - a panic must not end anything but this call
            raised = error
            release_frames(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed and nothing waits
            loop.call_soon_threadsafe(ended, result, raised)

    if slot is not None:
        slot.hold()
    try:
        threading.Thread(target=work, name="store", daemon=True).start()
    except BaseException:
        if slot is not None:
            slot.release()
        raise
    done, _ = await asyncio.wait({future}, timeout=seconds + GRACE_SECONDS)
    if not done:
        future.cancel()
        raise AbandonedError(f"no result after {seconds + GRACE_SECONDS:g} s")
    return future.result()
