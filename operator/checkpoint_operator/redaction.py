"""Keeping secrets out of everything that leaves the process: logs, conditions, Events."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_HIDDEN = "[redacted]"
# Names are no secrets, and replacing something short would tear other words apart.
_SHORTEST = 8

KEPT_SECONDS = 24 * 3600.0
"""Secrets in use are remembered anew at every pass. Session tokens rotate hourly, for ever: kept for good, they would
make every line slower to clean."""

_PATTERNS = (
    # What follows the "?" of a signed URL is as good as a key.
    (re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+"), rf"\1?{_HIDDEN}"),
    (re.compile(r"(https?://)[^\s/@'\"]+@"), rf"\1{_HIDDEN}@"),
    (
        re.compile(
            r"(?i)\b(authorization|x-amz-security-token|signature|sig|sas)"
            r"(['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer)\s+)?)[^\s'\",;&]+"
        ),
        rf"\1\2{_HIDDEN}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL), _HIDDEN),
)


class Redactor:
    """Replaces the secret values it was told of, and whatever looks like a signature. Safe from several threads.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}
        self._values: tuple[str, ...] = ()

    def remember(self, values: Iterable[str]) -> None:
        """Do not let these through; for a day, also after a rotation, as old errors may still quote them."""
        now = self._clock()
        with self._lock:
            self._told |= {value.strip(): now for value in values if len(value.strip()) >= _SHORTEST}
            self._told = {value: told for value, told in self._told.items() if now - told < KEPT_SECONDS}
            # One value may hold another; what is left of the longer one would be half a secret.
            self._values = tuple(sorted(self._told, key=len, reverse=True))

    def clean_all(self, value: Any) -> Any:
        """A JSON value with every string in it cleaned."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, Mapping):
            return {key: self.clean_all(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.clean_all(each) for each in value]
        return value

    def clean(self, text: str) -> str:
        """``text`` without secrets."""
        for value in self._values:
            text = text.replace(value, _HIDDEN)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text
