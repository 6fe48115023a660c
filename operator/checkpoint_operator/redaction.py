"""Keeping secrets out of everything that leaves the process: logs, conditions, Events."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any

_HIDDEN = "[redacted]"
# Names are no secrets, and replacing something short would tear other words apart.
_SHORTEST = 8

_PATTERNS = (
    # What follows the "?" of a signed URL is as good as a key.
    (re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+"), rf"\1?{_HIDDEN}"),
    (re.compile(r"(https?://)[^\s/@'\"]+@"), rf"\1{_HIDDEN}@"),
    (
        re.compile(r"(?i)\b(authorization|x-amz-security-token|signature|sig|sas)(['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&]+"),
        rf"\1\2{_HIDDEN}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL), _HIDDEN),
)


class Redactor:
    """Replaces the secret values it was told of, and whatever looks like a signature. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: frozenset[str] = frozenset()

    def remember(self, values: Iterable[str]) -> None:
        """Never let these through again; they stay known after a rotation, as old errors may still quote them."""
        long_enough = {value.strip() for value in values if len(value.strip()) >= _SHORTEST}
        with self._lock:
            self._values |= long_enough

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
