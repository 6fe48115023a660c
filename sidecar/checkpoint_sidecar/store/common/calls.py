"""Runs a client's requests: repeats them while that is safe, renews credentials, and translates errors."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

import tenacity

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    CheckpointError,
    DeletionRefusedError,
    ObjectExistsError,
    RequestRefusedError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.store.access import StoreSettings

LEAST_TRIES = 3

LARGE_BODY = 1024 * 1024
"""Requests that send more than this get ``Timeouts.body_seconds``."""

_Effect: TypeAlias = Literal["Read", "Write", "Create"]

Client = TypeVar("Client")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts for a store, in seconds.

    Attributes:
        deadline_seconds: How long to retry after transient failures of one request, but at least ``LEAST_TRIES`` times.
        answer_seconds: How long the store may be silent.
        body_seconds: The same for requests with a large body. The clients (aiohttp, reqwest) count the time for sending
            as silence, and a part may take minutes on a slow link.
    """

    deadline_seconds: float = 60.0
    answer_seconds: float = 30.0
    body_seconds: float = 120.0


DEFAULT_TIMEOUTS = Timeouts()

_REPORT = "Check URL, endpoint and credentials; if they are right, this is a fault of the client: report it."


@dataclass(frozen=True, slots=True)
class ClientFault:
    """The meaning of a client's exception.

    Attributes:
        kind: The error to raise.
        cause: The cause, without secrets: clients put URLs, signatures and key ids into their messages, so it contains
            none of that text.
        hint: The next step for the user.
        sent: Whether the request may have reached the store, so that the outcome of a write is unknown.
    """

    kind: type[StoreError]
    cause: str
    hint: str = ""
    sent: bool = False


class Calls(Generic[Client]):
    """Runs requests of one adapter. Safe from several threads.

    Args:
        settings: Location and credentials.
        connect: Creates a client from credentials.
        errors: The exceptions of the client library.
        explain: Returns the meaning of one of them.
        timeouts: How long to retry after transient failures of one request.
        last_success: Time of the last success of such requests, by the monotonic clock; restarts the deadline.
    """

    def __init__(
        self,
        settings: StoreSettings,
        *,
        connect: Callable[[Mapping[str, str]], Client],
        errors: tuple[type[Exception], ...],
        explain: Callable[[Exception], ClientFault],
        timeouts: Timeouts,
        last_success: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        self._settings = settings
        self._scheme = settings.url.partition("://")[0]
        self._connect = connect
        self._errors = errors
        self._explain = explain
        self._deadline_seconds = timeouts.deadline_seconds
        self._last_success = last_success
        self._lock = threading.Lock()
        self._connected: tuple[Client, Mapping[str, str]] | None = None

    def run(self, operation: str, key: str, request: Callable[[Client], Result]) -> Result:
        """Run a request that may be repeated after any outcome: it changes nothing, or repeats the same change.

        Raises:
            StoreError: The request failed; after transient failures, once the deadline has passed. May be a subclass.
        """
        return self._until(_transient, operation, key, request, "Read")

    def write(
        self,
        operation: str,
        key: str,
        request: Callable[[Client], Result],
        *,
        cancelled: threading.Event | None = None,
    ) -> Result:
        """Run a write that may be repeated although it may have reached the store.

        Args:
            cancelled: Ends the wait before a retry; the request must check it by itself.

        Raises:
            UnknownOutcomeError: It may have taken effect, or may yet.
        """
        return self._until(_transient, operation, key, request, "Write", cancelled)

    def create(self, operation: str, key: str, request: Callable[[Client], Result]) -> Result:
        """Run a write, and repeat it only if it certainly did not reach the store.

        Raises:
            UnknownOutcomeError: It may have taken effect, or may yet.
        """
        return self._until(_not_sent, operation, key, request, "Create")

    def once(self, operation: str, key: str, request: Callable[[Client], Result]) -> Result:
        """Run one step of a longer write, which only the caller may repeat."""
        return self._explained(operation, key, request, self._client(), "Write")

    def with_client(self, use: Callable[[Client], None]) -> None:
        """Call a function with the client. It must not make a request."""
        use(self._client())

    def reconnect(self) -> None:
        """Use a new client from now on, which has no connections yet."""
        with self._lock:
            values = self._settings.credentials.read_for(self._scheme)
            self._connected = self._connect(values), values

    def _until(
        self,
        again: Callable[[BaseException], bool],
        operation: str,
        key: str,
        request: Callable[[Client], Result],
        effect: _Effect,
        cancelled: threading.Event | None = None,
    ) -> Result:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(again),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            stop=self._given_up,
            sleep=tenacity.sleep_using_event(cancelled) if cancelled else tenacity.sleep,
            reraise=True,
        )
        result: Result = retrying(self._rotating, operation, key, request, effect)
        return result

    def _given_up(self, state: tenacity.RetryCallState) -> bool:
        waited = time.monotonic() - max(state.start_time, self._last_success())
        return waited >= self._deadline_seconds and state.attempt_number >= LEAST_TRIES

    def _rotating(self, operation: str, key: str, request: Callable[[Client], Result], effect: _Effect) -> Result:
        while True:
            client = self._client()
            try:
                return self._explained(operation, key, request, client, effect)
            except AccessDeniedError:
                if not self._reconnected(client):
                    raise

    def _explained(
        self, operation: str, key: str, request: Callable[[Client], Result], client: Client, effect: _Effect
    ) -> Result:
        try:
            return request(client)
        except (CheckpointError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except self._errors as error:
            fault = self._explain(error)
        except BaseException as error:  # noqa: BLE001 - a native client may panic, which is no Exception
            fault = ClientFault(RequestRefusedError, f"the client failed ({type(error).__name__})", _REPORT, sent=True)
        kind = fault.kind
        if fault.sent and effect != "Read":
            kind = UnknownOutcomeError
        if kind is ObjectExistsError and effect != "Create":
            # The request had no precondition, so this is not a lost race.
            kind = RequestRefusedError
        # Raised outside the handler: the client's exception may quote secrets and must not be the context of ours.
        raise kind(operation, f"{self._settings.url}/{key}", fault.cause, fault.hint)

    def _client(self) -> Client:
        with self._lock:
            if self._connected is None:
                values = self._settings.credentials.read_for(self._scheme)
                self._connected = self._connect(values), values
            return self._connected[0]

    def _reconnected(self, denied: Client) -> bool:
        """Reconnect if the credentials have rotated. Returns whether the client now differs from the denied one."""
        with self._lock:
            if self._connected is None or self._connected[0] is not denied:
                return True
            values = self._settings.credentials.read_for(self._scheme)
            if values == self._connected[1]:
                return False
            self._connected = self._connect(values), values
            return True


def _transient(error: BaseException) -> bool:
    return isinstance(error, StoreError) and error.retryable


def _not_sent(error: BaseException) -> bool:
    return _transient(error) and not isinstance(error, UnknownOutcomeError)


def batches(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield the keys in lists of at most ``size``."""
    remaining = iter(keys)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


@contextlib.contextmanager
def deleting() -> Iterator[None]:
    """Raise a refusal as that of a deletion, which leaves everything else that a store does usable.

    Raises:
        DeletionRefusedError: The store denied or refused the request.
    """
    try:
        yield
    except (AccessDeniedError, RequestRefusedError) as error:
        raise DeletionRefusedError(error.operation, error.subject, error.cause, error.hint) from error.__cause__


def name_keys(keys: Sequence[str]) -> str:
    """Describe several keys in one error: the first, and the number of others."""
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} others"
