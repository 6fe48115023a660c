"""How to reach a store: its location and our identity. Values, picklable, and never showing a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from checkpoint_sidecar.core.environment import AddressingStyle, RunEnvironment
from checkpoint_sidecar.core.errors import ConfigurationError

AWS_ACCESS_KEY_ID = "AWS_ACCESS_KEY_ID"
AWS_SECRET_ACCESS_KEY = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - the name of a key of the Secret
AWS_SESSION_TOKEN = "AWS_SESSION_TOKEN"  # noqa: S105
GOOGLE_APPLICATION_CREDENTIALS_JSON = "GOOGLE_APPLICATION_CREDENTIALS_JSON"
AZURE_STORAGE_ACCOUNT_NAME = "AZURE_STORAGE_ACCOUNT_NAME"
AZURE_STORAGE_ACCOUNT_KEY = "AZURE_STORAGE_ACCOUNT_KEY"
AZURE_STORAGE_SAS_TOKEN = "AZURE_STORAGE_SAS_TOKEN"  # noqa: S105
CA_CERTIFICATE = "ca.crt"

# What a Secret must hold for each scheme: one of these sets in full.
_REQUIRED: dict[str, tuple[frozenset[str], ...]] = {
    "s3": (frozenset({AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY}),),
    "gs": (frozenset({GOOGLE_APPLICATION_CREDENTIALS_JSON}),),
    "az": (
        frozenset({AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY}),
        frozenset({AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_SAS_TOKEN}),
    ),
}
# They become parts of headers and URLs; the other ones are documents.
_DOCUMENTS = frozenset({GOOGLE_APPLICATION_CREDENTIALS_JSON, CA_CERTIFICATE})
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")

KNOWN_KEYS = frozenset({AWS_SESSION_TOKEN, CA_CERTIFICATE}).union(
    *(keys for sets in _REQUIRED.values() for keys in sets)
)


class Credentials:
    """Our identity: given values, a folder of files (a mounted Secret), or the environment's own identity.

    ``repr`` names the keys and never shows a value.
    """

    __slots__ = ("_folder", "_values")

    def __init__(self, values: Mapping[str, str] | None = None, folder: Path | None = None) -> None:
        self._values = None if values is None else dict(values)
        self._folder = folder

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Credentials:
        """Fixed values, under the keys of a Secret (``KNOWN_KEYS``; others are ignored)."""
        return cls(values={key: value for key, value in values.items() if key in KNOWN_KEYS})

    @classmethod
    def in_folder(cls, path: str | Path) -> Credentials:
        """One file per key, read whenever a client is opened and again when access is denied: the files rotate live."""
        return cls(folder=Path(path))

    @property
    def ambient(self) -> bool:
        """Whether the store's client finds the identity by itself (environment, workload identity, instance role)."""
        return self._values is None and self._folder is None

    def read(self) -> Mapping[str, str]:
        """The values as they are now; empty for the ambient identity.

        Raises:
            ConfigurationError: The folder cannot be read.
        """
        if self._folder is not None:
            return MappingProxyType(_read_folder(self._folder))
        return MappingProxyType(self._values or {})

    def read_for(self, scheme: str) -> Mapping[str, str]:
        """Like ``read``, but refuses values that name no identity for the scheme.

        Falling back to the ambient identity would use other rights than the Secret's when a key is misspelled.

        Raises:
            ConfigurationError: The folder cannot be read or required keys are missing.
        """
        values = self.read()
        required = _REQUIRED.get(scheme, ())
        if not self.ambient and required and not any(keys <= values.keys() for keys in required):
            raise ConfigurationError(
                "read the storage credentials",
                repr(self),
                f"they name no identity for {scheme}",
                f"Set {' or '.join(_listed(keys) for keys in required)}.",
            )
        for key, value in values.items():
            if key not in _DOCUMENTS and not _HEADER_VALUE.fullmatch(value):
                raise ConfigurationError(
                    "read the storage credentials",
                    key,
                    "it is empty or has characters that an HTTP header cannot hold (line breaks, spaces, non-ASCII)",
                    "Write the value again, without quotes and without a line break.",
                )
        return values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Credentials):
            return NotImplemented
        return (self._values, self._folder) == (other._values, other._folder)

    def __hash__(self) -> int:
        return hash((self._folder, None if self._values is None else frozenset(self._values.items())))

    def __repr__(self) -> str:
        if self._folder is not None:
            return f"Credentials.in_folder({str(self._folder)!r})"
        return "AMBIENT" if self._values is None else f"Credentials.of({_listed(self._values) or 'nothing'})"


AMBIENT = Credentials()


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Everything that opens a store.

    Attributes:
        url: See ``core.location.check_url``.
        endpoint: Base URL of the service, for stores other than the cloud's own; ``http://`` switches TLS off.
        region: Empty lets the client find it.
        addressing_style: Whether the bucket stands in the host name or in the path (s3 only). See
            ``s3_target.target_of``.
        credentials: See ``Credentials``.
        server_side_encryption: How S3 is asked to encrypt what is written: ``AES256``, ``aws:kms``, ``aws:kms:dsse``;
            empty leaves it to the bucket.
        kms_key_id: The key for ``aws:kms``; empty for the bucket's.
        requester_pays: Whether requests agree to be paid for (s3 only).
        tags: Of every object that is written (s3 only).
        filesystem: An fsspec filesystem that serves the URL instead of this package's own clients; then only the URL
            and this count.
    """

    url: str
    endpoint: str = ""
    region: str = ""
    addressing_style: AddressingStyle = "Auto"
    credentials: Credentials = AMBIENT
    server_side_encryption: str = ""
    kms_key_id: str = ""
    requester_pays: bool = False
    tags: tuple[tuple[str, str], ...] = ()
    filesystem: Any = field(default=None, repr=False)

    @classmethod
    def of_environment(cls, env: RunEnvironment) -> StoreSettings:
        """Return the settings in the environment of an injected pod."""
        return cls(
            env.url,
            endpoint=env.endpoint,
            region=env.region,
            addressing_style=env.addressing_style,
            credentials=Credentials.in_folder(env.credentials_folder) if env.credentials_folder else AMBIENT,
            server_side_encryption=env.server_side_encryption,
            kms_key_id=env.kms_key_id,
            requester_pays=env.requester_pays,
            tags=env.tags,
        )


def redacted(text: str, values: Mapping[str, str]) -> str:
    """Return a client's message without any part of the credentials: neither whole values nor words of them."""
    secrets = sorted(_secrets(values), key=len, reverse=True)
    for value in secrets:
        text = text.replace(value, "***")
    return _WORD.sub(lambda word: "***" if any(word[0] in value for value in secrets) else word[0], text)


_WORD = re.compile(r"[^\s\"'`\\,;(){}\[\]]{8,}")


def _secrets(values: Mapping[str, str]) -> Iterator[str]:
    for key, value in values.items():
        if key != CA_CERTIFICATE:
            yield from filter(None, (value, *_strings_in(value)))


def _strings_in(text: str) -> Iterator[str]:
    """Yield the strings in a JSON document; nothing if the text is not JSON."""
    try:
        remaining: list[Any] = [json.loads(text)]
    except ValueError:
        return
    while remaining:
        match remaining.pop():
            case str(found):
                yield found
            case list(items):
                remaining += items
            case dict(fields):
                remaining += fields.values()


def _read_folder(folder: Path) -> dict[str, str]:
    # The kubelet swaps the link ``..data`` when a Secret changes: resolving it once never mixes old keys with new.
    data = folder / "..data"
    root = data.resolve() if data.exists() else folder
    try:
        names = {path.name for path in root.iterdir()}
        return {key: (root / key).read_text().strip() for key in sorted(KNOWN_KEYS & names)}
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else "a file in it is not text"
        raise ConfigurationError(
            "read the storage credentials", str(folder), cause, "Mount the Secret with the credentials there."
        ) from None


def _listed(keys: Iterable[str]) -> str:
    return " and ".join(sorted(keys))
