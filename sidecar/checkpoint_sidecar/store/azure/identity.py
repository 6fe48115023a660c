"""The identity in Azure: a given key or signature, or the ambient identity of this process."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from checkpoint_sidecar.core.errors import AccessDeniedError, ConfigurationError
from checkpoint_sidecar.store import access as secret
from checkpoint_sidecar.store.http.tokens import GIVE_CREDENTIALS, Token, Tokens, ask

ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
"""Matches names of storage accounts, which become part of a host name."""

_PARAMETERS = frozenset(
    {
        *("sv", "ss", "srt", "sp", "se", "st", "spr", "sip", "sig", "si", "sr", "sdd", "ses"),
        *("skoid", "sktid", "skt", "ske", "sks", "skv", "skdutid", "saoid", "suoid", "scid"),
        *("rscc", "rscd", "rsce", "rscl", "rsct"),
    }
)
_SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
_RESOURCE = "https://storage.azure.com"
_AUTHORITY = "https://login.microsoftonline.com"
_METADATA = "http://169.254.169.254/metadata/identity/oauth2/token"


class AzureIdentity:
    """An account and its credentials, which sign requests. Safe from several threads.

    Args:
        values: The credentials; empty for the ambient identity.

    Raises:
        ConfigurationError: They are invalid.
        AccessDeniedError: No ambient identity was found.
    """

    def __init__(self, values: Mapping[str, str], *, ambient: bool) -> None:
        if ambient:
            values = _from_environment()
        self.account = values.get(secret.AZURE_STORAGE_ACCOUNT_NAME, "")
        if not ACCOUNT.fullmatch(self.account):
            raise _refused(secret.AZURE_STORAGE_ACCOUNT_NAME, "it does not have 3 to 24 small letters and digits")
        self._key = _account_key(values.get(secret.AZURE_STORAGE_ACCOUNT_KEY, ""))
        self._signature = _shared_signature(values.get(secret.AZURE_STORAGE_SAS_TOKEN, ""))
        self._tokens = Tokens(_token_of_this_process) if ambient and not (self._key or self._signature) else None
        self._values = values

    @property
    def secrets(self) -> Mapping[str, str]:
        """Secrets to remove from messages."""
        return {**self._values, "token": self._tokens.last} if self._tokens else self._values

    def signed(self, method: str, url: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        """Return the URL and headers, signed.

        Raises:
            StoreError: No identity was found.
        """
        if self._tokens is not None:
            return url, headers | {"Authorization": f"Bearer {self._tokens.current()}"}
        if self._key:
            signature = self._signature_of(method, url, headers)
            return url, headers | {"Authorization": f"SharedKey {self.account}:{signature}"}
        return f"{url}{'&' if urlsplit(url).query else '?'}{self._signature}", headers

    def _signature_of(self, method: str, url: str, headers: Mapping[str, str]) -> str:
        lower = {name.lower(): value for name, value in headers.items()}
        if lower.get("content-length") == "0":
            del lower["content-length"]
        parts = urlsplit(url)
        own = sorted((name, value) for name, value in lower.items() if name.startswith("x-ms-"))
        query = sorted((name.lower(), value) for name, value in parse_qsl(parts.query, keep_blank_values=True))
        lines = [
            method,
            *(lower.get(name, "") for name in _SIGNED_HEADERS),
            *(f"{name}:{value}" for name, value in own),
            f"/{self.account}{parts.path}",
            *(f"{name}:{value}" for name, value in query),
        ]
        digest = hmac.new(self._key, "\n".join(lines).encode(), hashlib.sha256).digest()
        return base64.b64encode(digest).decode()


def _account_key(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _refused(secret.AZURE_STORAGE_ACCOUNT_KEY, "it is not base64") from None


def _shared_signature(text: str) -> str:
    """Return the token as a query, with only the parameters that shared access signatures have."""
    if not text:
        return ""
    try:
        pairs = parse_qsl(text.removeprefix("?"), keep_blank_values=True, strict_parsing=True)
    except ValueError:
        pairs = []
    names = [name for name, _ in pairs]
    if "sig" not in names or len(set(names)) < len(names) or not _PARAMETERS.issuperset(names):
        raise _refused(secret.AZURE_STORAGE_SAS_TOKEN, "it is not a shared access signature: sv=...&sig=...")
    return urlencode(pairs)


def _from_environment() -> dict[str, str]:
    names = (
        secret.AZURE_STORAGE_ACCOUNT_NAME,
        secret.AZURE_STORAGE_ACCOUNT_KEY,
        secret.AZURE_STORAGE_SAS_TOKEN,
    )
    return {name: value for name in names if (value := os.environ.get(name))}


def _token_of_this_process() -> Token:
    """Get a token by workload identity, a client's secret or the machine's managed identity, as configured."""
    client, tenant = os.environ.get("AZURE_CLIENT_ID", ""), os.environ.get("AZURE_TENANT_ID", "")
    form = {"client_id": client, "grant_type": "client_credentials", "scope": f"{_RESOURCE}/.default"}
    authority = os.environ.get("AZURE_AUTHORITY_HOST", _AUTHORITY).rstrip("/")
    url = f"{authority}/{tenant}/oauth2/v2.0/token"
    if client and tenant and (path := os.environ.get("AZURE_FEDERATED_TOKEN_FILE")):
        form["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        form["client_assertion"] = _read(path)
        return ask("the identity provider", url, form=form)
    if client and tenant and (value := os.environ.get("AZURE_CLIENT_SECRET")):
        return ask("the identity provider", url, form={**form, "client_secret": value})
    query = {"resource": _RESOURCE} | ({"client_id": client} if client else {})
    if endpoint := os.environ.get("IDENTITY_ENDPOINT"):
        header = {"X-IDENTITY-HEADER": os.environ.get("IDENTITY_HEADER", "")}
        asked = f"{endpoint}?{urlencode({'api-version': '2019-08-01', **query})}"
        return ask("the managed identity", asked, headers=header, proxied=False)
    asked = f"{_METADATA}?{urlencode({'api-version': '2018-02-01', **query})}"
    return ask("the managed identity", asked, headers={"Metadata": "true"}, proxied=False)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise AccessDeniedError(
            "open the store", "AZURE_FEDERATED_TOKEN_FILE", "the file cannot be read", GIVE_CREDENTIALS
        ) from None


def _refused(name: str, cause: str) -> ConfigurationError:
    return ConfigurationError("read the storage credentials", name, cause, "Correct the value.")
