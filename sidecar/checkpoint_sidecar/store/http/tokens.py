"""Bearer tokens of identity providers, fetched on demand and renewed before they expire."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from checkpoint_sidecar.core.errors import AccessDeniedError
from checkpoint_sidecar.store.http.certificates import trust
from checkpoint_sidecar.store.http.connections import FAILURES, Connections, HttpRequest

ANSWER_SECONDS = 10.0
GIVE_CREDENTIALS = "Give credentials, or run where the platform provides an identity."

_EARLY_SECONDS = 300.0
_LEAST_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Token:
    """A token and the time for which it is valid."""

    value: str
    seconds: float

    def __repr__(self) -> str:
        return f"Token(seconds={self.seconds})"


class Tokens:
    """Provides a valid token. Safe from several threads.

    Args:
        fetch: Requests a token from the provider.
    """

    def __init__(self, fetch: Callable[[], Token]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._value = ""
        self._renew_at = 0.0
        self._ends_at = 0.0

    @property
    def last(self) -> str:
        """The token that was returned last; empty before."""
        return self._value

    def current(self) -> str:
        """Return a valid token.

        Raises:
            StoreError: No token was found.
        """
        with self._lock:
            now = time.monotonic()
            if now >= self._renew_at:
                try:
                    token = self._fetch()
                except AccessDeniedError:
                    # A brief failure of the provider does not invalidate a token that is still valid.
                    if now >= self._ends_at:
                        raise
                    self._renew_at = now + _LEAST_SECONDS
                else:
                    self._value = token.value
                    self._ends_at = now + token.seconds
                    self._renew_at = now + max(token.seconds - _EARLY_SECONDS, min(_LEAST_SECONDS, token.seconds))
            return self._value


def ask(
    provider: str,
    url: str,
    *,
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    proxied: bool = True,
) -> Token:
    """Request a token from an OAuth endpoint or a metadata service.

    Args:
        provider: Name of the provider in errors.
        form: Form to post; None sends a GET.
        proxied: False for a service of this machine's platform.

    Raises:
        AccessDeniedError: The identity provider does not issue a token.
    """
    body = [memoryview(urlencode(form).encode())] if form is not None else []
    sent = {**({"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {}), **(headers or {})}
    request = HttpRequest("GET" if form is None else "POST", url, ANSWER_SECONDS, sent, body)
    connections = Connections(lambda: trust("", url), silence_seconds=ANSWER_SECONDS, proxied=proxied)
    cause = ""
    try:
        answer = connections.exchange(request)
        if answer.status == 200:
            return _parsed(json.loads(answer.body))
        cause = f"{provider} answered {answer.status}"
    except FAILURES as error:
        cause = f"{provider} cannot be reached ({type(error).__name__})"
    except (ValueError, KeyError, TypeError, RecursionError):
        cause = f"the answer of {provider} holds no token"
    finally:
        connections.renew()
    # Raised outside the handler: the exception may quote secrets and must not be the context of ours.
    raise AccessDeniedError("open the store", provider, cause, GIVE_CREDENTIALS)


def _parsed(answer: dict[str, Any]) -> Token:
    return Token(str(answer["access_token"]), float(answer["expires_in"]))
