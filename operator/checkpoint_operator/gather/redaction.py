"""Keeps secrets out of the texts that leave the process: log messages, and messages of conditions and Events.

A tenant chooses the values of its Secrets. So they are cut out of texts about its own Checkpoint and no other, and
never out of fields that mean something: reasons, names, ids, owners.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from checkpoint_operator.model.observed import Key
from checkpoint_sidecar.store.access import (
    AZURE_STORAGE_ACCOUNT_NAME,
    CA_CERTIFICATE,
    GOOGLE_APPLICATION_CREDENTIALS_JSON,
    KNOWN_KEYS,
)

_HIDDEN = "[redacted]"
# Names are not secret, and replacing a short value would tear other words apart.
_SHORTEST = 8

KEPT_BYTES = 32 * 1024
"""Size of the newest values kept for one Checkpoint: after a rotation old errors may still quote former ones."""

_PUBLIC = frozenset({CA_CERTIFICATE, AZURE_STORAGE_ACCOUNT_NAME})
# They stand in URLs and certificates anyway, and would make messages unreadable.
_SECRET_FIELDS = ("private_key", "private_key_id", "client_secret", "refresh_token")

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


_checkpoint: contextvars.ContextVar[Key | None] = contextvars.ContextVar("checkpoint", default=None)


@contextlib.contextmanager
def working_on(key: Key) -> Iterator[None]:
    """Mark all texts written meanwhile, in this context and in threads with a copy of it, as about this Checkpoint."""
    token = _checkpoint.set(key)
    try:
        yield
    finally:
        _checkpoint.reset(token)


class Redactor:
    """Redacts the secrets of the current Checkpoint, and anything that looks like a signature. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Key, tuple[str, ...]] = {}

    def remember(self, key: Key, secret: Mapping[str, str]) -> None:
        """Redact the secret values of a Checkpoint's Secret from now on."""
        values = [value for value in _secret_values(secret) if _SHORTEST <= len(value) <= KEPT_BYTES]
        with self._lock:
            newest = [*values, *(value for value in self._known.get(key, ()) if value not in values)]
            kept, room = [], KEPT_BYTES
            for value in newest:
                room -= len(value)
                if room < 0:
                    break
                kept.append(value)
            self._known[key] = tuple(kept)

    def forget(self, key: Key) -> None:
        """Forget a Checkpoint that is gone."""
        with self._lock:
            self._known.pop(key, None)

    def clean_messages(self, status: Mapping[str, Any]) -> dict[str, Any]:
        """Return a status with its free texts redacted, and nothing else changed."""
        cleaned = dict(status)
        if "conditions" in cleaned:
            cleaned["conditions"] = [
                {**condition, "message": self.clean(condition["message"])} for condition in cleaned["conditions"]
            ]
        if "notice" in cleaned.get("attempt", {}):
            cleaned["attempt"] = {**cleaned["attempt"], "notice": self.clean(cleaned["attempt"]["notice"])}
        return cleaned

    def clean(self, text: str) -> str:
        """Return ``text`` without secrets of the current Checkpoint."""
        key = _checkpoint.get()
        # One value may contain another: replacing the shorter first would leave half a secret.
        for value in sorted(self._known.get(key, ()) if key else (), key=len, reverse=True):
            text = text.replace(value, _HIDDEN)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


def _secret_values(secret: Mapping[str, str]) -> Iterator[str]:
    for name in KNOWN_KEYS - _PUBLIC:
        value = secret.get(name, "").strip()
        yield value
        if name == GOOGLE_APPLICATION_CREDENTIALS_JSON and len(value) <= KEPT_BYTES:
            yield from _fields_of(value)


def _fields_of(google_key: str) -> Iterator[str]:
    try:
        parsed = json.loads(google_key)
    except (ValueError, RecursionError):
        return
    if isinstance(parsed, dict):
        yield from (value for name in _SECRET_FIELDS if isinstance(value := parsed.get(name), str))
