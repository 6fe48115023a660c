"""The identity in Google Cloud: a given service account key, or the ambient identity of this process."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_sidecar.core.errors import AccessDeniedError, ConfigurationError
from checkpoint_sidecar.store import access as secret
from checkpoint_sidecar.store.http.tokens import GIVE_CREDENTIALS, Token, Tokens, ask

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
_TOKEN_SECONDS = 3600
_MOST_KEY_CHARACTERS = 64 * 1024
_TEXT = re.compile(r"[\x20-\x7e]{1,2048}")
_PEM = re.compile(r"[\x20-\x7e\r\n]{1,16384}")
_WELL_KNOWN = ".config/gcloud/application_default_credentials.json"


@dataclass(frozen=True, slots=True)
class ServiceAccountKey:
    """The used fields of a key file; all others are dropped.

    Attributes:
        base_url: Server to use instead of Google's (``gcs_base_url``), such as an emulator; usually empty.
        anonymous: Whether that server needs no identity (``disable_oauth``).
    """

    client_email: str
    private_key_id: str
    private_key: str
    base_url: str
    anonymous: bool

    def __repr__(self) -> str:
        return "ServiceAccountKey(...)"


def parse_key(text: str) -> ServiceAccountKey:
    """Parse a service account's key file strictly: refuse one that is incomplete or ambiguous.

    Raises:
        ValueError: The text is not a key; the message gives the reason without quoting it.
    """
    fields = _object(text)
    anonymous = fields.get("disable_oauth", False)
    if not isinstance(anonymous, bool):
        raise ValueError("disable_oauth is neither true nor false")  # noqa: TRY004 - of the document, not of an argument
    if anonymous and not fields.get("gcs_base_url"):
        raise ValueError("disable_oauth is for another server than Google's, and gcs_base_url is missing")
    if not anonymous and fields.get("type") != "service_account":
        raise ValueError('its type is not "service_account"')
    return ServiceAccountKey(
        client_email=_field(fields, "client_email", needed=not anonymous),
        private_key_id=_field(fields, "private_key_id", needed=False),
        private_key=_field(fields, "private_key", needed=not anonymous, pattern=_PEM),
        base_url=_field(fields, "gcs_base_url", needed=False),
        anonymous=anonymous,
    )


def named_server(text: str) -> str:
    """Return the server that a key file names (``gcs_base_url``), or an empty string.

    Raises:
        ValueError: It cannot be parsed; the message gives the reason without quoting it.
    """
    return _field(_object(text), "gcs_base_url", needed=False)


def key_of(values: Mapping[str, str]) -> ServiceAccountKey:
    """Return the key among a store's credentials.

    Raises:
        ConfigurationError: It is invalid.
    """
    try:
        return parse_key(values[secret.GOOGLE_APPLICATION_CREDENTIALS_JSON])
    except ValueError as error:
        cause = str(error)
    # Raised outside the handler: the exception may contain the key.
    raise _refused(secret.GOOGLE_APPLICATION_CREDENTIALS_JSON, cause)


class GoogleIdentity:
    """Authorizes requests. Safe from several threads.

    Args:
        key: The given key; None for the ambient identity.

    Raises:
        ConfigurationError: The key is invalid.
    """

    def __init__(self, key: ServiceAccountKey | None) -> None:
        self._tokens: Tokens | None = None
        if key is None:
            self._tokens = Tokens(_token_of_this_process)
        elif not key.anonymous:
            signer = _Signer(key)
            self._tokens = Tokens(signer.token)

    @property
    def secrets(self) -> Mapping[str, str]:
        """Secrets to remove from messages."""
        return {"token": self._tokens.last} if self._tokens else {}

    def headers(self) -> dict[str, str]:
        """Return the headers that authorize a request.

        Raises:
            StoreError: No identity was found.
        """
        return {"Authorization": f"Bearer {self._tokens.current()}"} if self._tokens else {}


class _Signer:
    """Makes tokens from a key. Google's services accept a token that the key has signed, so none is requested."""

    def __init__(self, key: ServiceAccountKey) -> None:
        # Imported here: only Google's keys need it.
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            loaded = load_pem_private_key(key.private_key.encode(), password=None)
        except Exception:  # noqa: BLE001 - whatever it is, the key cannot be used, and the exception may hold it
            loaded = None
        if not isinstance(loaded, RSAPrivateKey):
            raise _refused(secret.GOOGLE_APPLICATION_CREDENTIALS_JSON, "its private_key is not an RSA key in PEM")
        self._private = loaded
        self._key = key

    def token(self) -> Token:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        now = int(time.time())
        key = self._key
        header = {"alg": "RS256", "typ": "JWT"} | ({"kid": key.private_key_id} if key.private_key_id else {})
        claims = {
            "iss": key.client_email,
            "sub": key.client_email,
            "scope": _SCOPE,
            "iat": now,
            "exp": now + _TOKEN_SECONDS,
        }
        signed = f"{_encoded(header)}.{_encoded(claims)}"
        signature = self._private.sign(signed.encode(), PKCS1v15(), SHA256())
        return Token(f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}", _TOKEN_SECONDS)


def _token_of_this_process() -> Token:
    """Get a token by the file that the environment or gcloud names, else from the platform's metadata service."""
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or os.environ.get("GOOGLE_SERVICE_ACCOUNT")
    file = Path(path) if path else Path.home() / _WELL_KNOWN
    if path or file.exists():
        return _token_of_file(file)
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    url = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token"
    return ask("the metadata service", url, headers={"Metadata-Flavor": "Google"}, proxied=False)


def _token_of_file(file: Path) -> Token:
    try:
        text = file.read_text()
        fields = _object(text)
        if fields.get("type") == "authorized_user":
            form = {name: _field(fields, name, needed=True) for name in ("client_id", "client_secret", "refresh_token")}
            return ask("Google", _TOKEN_URL, form={**form, "grant_type": "refresh_token"})
        return _Signer(parse_key(text)).token()
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    raise AccessDeniedError("open the store", str(file), cause, GIVE_CREDENTIALS)


def _object(text: str) -> dict[str, Any]:
    if len(text) > _MOST_KEY_CHARACTERS:
        raise ValueError(f"it has more than {_MOST_KEY_CHARACTERS} characters")
    try:
        parsed = json.loads(text, object_pairs_hook=_without_duplicates)
    except _DuplicateError:
        raise ValueError("a field stands in it twice") from None
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON that can be read") from None
    if not isinstance(parsed, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004
    return parsed


class _DuplicateError(ValueError):
    """Raised if a field occurs twice in an object, because parsers differ in which one they use."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise _DuplicateError
    return dict(pairs)


def _field(fields: Mapping[str, Any], name: str, *, needed: bool, pattern: re.Pattern[str] = _TEXT) -> str:
    value = fields.get(name, "")
    if value == "" and not needed:
        return ""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{name} is missing, or has characters that do not belong there")
    return value


def _encoded(fields: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=").decode()


def _refused(name: str, cause: str) -> ConfigurationError:
    return ConfigurationError(
        "read the storage credentials", name, cause, "Store the service account's key file as it was downloaded."
    )
