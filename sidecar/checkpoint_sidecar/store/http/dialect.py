"""What the protocols of S3, Google Cloud Storage and Azure have in common: requests, and what is read from answers."""

from __future__ import annotations

import datetime as dt
import email.utils
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode
from xml.etree import ElementTree as ET

from checkpoint_sidecar.store.access import CA_CERTIFICATE, redacted
from checkpoint_sidecar.store.base import ObjectInfo, UnfinishedUpload
from checkpoint_sidecar.store.http.certificates import certificate_file, delete_with
from checkpoint_sidecar.store.http.connections import Answer

MOST_PAGE_BYTES = 16 * 1024 * 1024
"""What a page of a listing may have: 5,000 keys of 1,024 bytes, each of them escaped."""

_MOST_EXPLANATION = 300
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
_SIGNATURES = re.compile(r"(?i)[^\s,;]*(?:signature|credential|token|sig)=[^\s,;]*|AWS4-HMAC-SHA256|Bearer\s+\S+")


@dataclass(frozen=True, slots=True)
class Message:
    """A request before it is signed.

    Attributes:
        path: Below the base URL, escaped; empty for the base itself.
        body: Views in bytes.
        success: The statuses of an answer that is one; any other raises ``AnswerError``.
        checksum_headers: Headers that some servers do not implement, and that may be left out.
    """

    method: str
    path: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[memoryview] = ()
    success: tuple[int, ...] = (200,)
    checksum_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing; ``token`` asks for the next one and is empty on the last."""

    objects: Sequence[ObjectInfo]
    token: str = ""


@dataclass(frozen=True, slots=True)
class UploadPage:
    """One page of the unfinished uploads; ``query`` asks for the next one and is empty on the last."""

    uploads: Sequence[UnfinishedUpload]
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeptObject:
    """An object that a deletion left, and why."""

    key: str
    code: str
    explanation: str


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part that the store has: its tag, and its CRC32C if the store was given that."""

    tag: str
    crc32c: int | None


class AnswerError(Exception):
    """The store answered, and not with what was asked for.

    Args:
        code: The store's word for what went wrong; may be empty.
        explanation: The store's own sentence, without secrets.
        location: Where the answer wants to lead the client; empty unless it is a redirect.
        asked: Host and port that were asked.
    """

    def __init__(
        self,
        status: int,
        code: str = "",
        explanation: str = "",
        *,
        location: str = "",
        asked: str = "",
        proxy: str = "",
    ) -> None:
        super().__init__()
        self.status = status
        self.code = code
        self.explanation = explanation
        self.location = location
        self.asked = asked
        self.proxy = proxy


class UnreadableAnswerError(Exception):
    """The answer is a success by its status, and does not say what such an answer says.

    Args:
        cause: What it lacks; empty where it may have been damaged on the way, so that asking again is worth it.
    """

    def __init__(self, cause: str = "") -> None:
        super().__init__(cause)
        self.cause = cause


class Dialect(ABC):
    """The requests for one bucket, by one identity. Keys are whole: with the store's prefix.

    Attributes:
        base: What the paths of all requests stand below.
        ca_file: The authorities whose certificates are trusted; empty for the system's.
        keys_per_delete: How many keys one request deletes.
    """

    base: str
    ca_file: str
    keys_per_delete = 1

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.ca_file = ""
        if certificate := values.get(CA_CERTIFICATE):
            self.ca_file = certificate_file(certificate)
            delete_with(self, self.ca_file)

    @property
    def secrets(self) -> Mapping[str, str]:
        """What messages of the store are cleaned of."""
        return self._values

    @abstractmethod
    def signed(self, message: Message, url: str) -> tuple[str, Mapping[str, str]]:
        """The URL and the headers of a request, with the identity of the moment.

        Raises:
            StoreError: No identity was found.
        """

    @abstractmethod
    def put(self, key: str, body: Sequence[memoryview], crc32c: int, *, create: bool) -> Message:
        """Write an object; with ``create`` only if the key is free."""

    def check_written(self, answer: Answer, crc32c: int) -> None:  # noqa: B027 - most stores check it themselves
        """Raise if the answer to ``put`` says that the store has other bytes."""

    @abstractmethod
    def get(self, key: str, start: int | None = None, length: int = 0) -> Message:
        """Read an object, or ``length`` bytes of it from ``start``."""

    @abstractmethod
    def head(self, key: str) -> Message:
        """Describe an object."""

    @abstractmethod
    def list(self, prefix: str, after: str, token: str) -> Message:
        """One page of the objects whose keys start with ``prefix``, perhaps only of those later than ``after``."""

    @abstractmethod
    def listed(self, answer: Answer) -> Page:
        """What such a page says; the objects with their whole keys.

        Raises:
            UnreadableAnswerError: The answer is not a page of a listing.
        """

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> Message:
        """Delete at most ``keys_per_delete`` objects."""

    def kept(self, answer: Answer) -> Sequence[KeptObject]:  # noqa: ARG002
        """Those that were not deleted, where one request deletes several; a missing one is not among them.

        Raises:
            UnreadableAnswerError: It confirms no deletion.
        """
        raise UnreadableAnswerError

    @abstractmethod
    def failure(self, message: Message, answer: Answer) -> tuple[str, str]:
        """Code and explanation in an answer that is an error."""


class PartsDialect(Dialect):
    """Large objects are written in parts, in any order."""

    def begin_upload(self, key: str) -> Message | None:
        """Begin an object in parts, or None where nothing has to be begun."""

    def upload_id(self, answer: Answer) -> str:  # noqa: ARG002
        """The upload that was begun."""
        raise UnreadableAnswerError

    @abstractmethod
    def part(self, key: str, upload_id: str, index: int, body: Sequence[memoryview], crc32c: int) -> Message:
        """Write one part."""

    @abstractmethod
    def tag(self, answer: Answer) -> str:
        """What completing asks for of a part."""

    @abstractmethod
    def complete_upload(self, key: str, upload_id: str, parts: Sequence[StoredPart]) -> Message:
        """Publish the object."""

    def check_completed(self, answer: Answer) -> None:
        """Raise unless the answer says that the object is published."""

    def abort_upload(self, key: str, upload_id: str) -> Message | None:
        """Discard the parts, or None where the store does so by itself."""

    def unfinished(self, prefix: str, query: Mapping[str, str]) -> Message | None:
        """One page of the uploads that were not finished, or None where the store discards them by itself."""

    def listed_uploads(self, answer: Answer) -> UploadPage:  # noqa: ARG002
        """What such a page says."""
        raise UnreadableAnswerError


class StreamDialect(Dialect):
    """Large objects are written from the beginning to the end."""

    @abstractmethod
    def begin_stream(self, key: str) -> Message:
        """Begin an upload."""

    @abstractmethod
    def stream_id(self, answer: Answer) -> str:
        """The upload that was begun."""

    @abstractmethod
    def stream(self, key: str, stream_id: str, body: Sequence[memoryview], start: int, size: int) -> Message:
        """Send bytes from ``start`` on, of an object of ``size``; none to ask how many are stored.

        The last byte publishes the object.
        """

    @abstractmethod
    def streamed(self, answer: Answer, size: int) -> int:
        """How many bytes are stored."""

    @abstractmethod
    def abort_stream(self, key: str, stream_id: str) -> Message:
        """Discard an upload."""


def url_of(base: str, message: Message) -> str:
    """The URL of a message."""
    query = urlencode(sorted(message.query.items()), quote_via=quote, safe="-_.~")
    return f"{base}{'/' if message.path else ''}{message.path}{'?' if query else ''}{query}"


def escaped(key: str, *, safe: str = "/-_.~") -> str:
    """A key as a path."""
    return quote(key, safe=safe)


def explanation_of(text: str, secrets: Mapping[str, str]) -> str:
    """The sentence of a store, in one line of bounded length, without signatures and without anything secret."""
    line = _UNPRINTABLE.sub(" ", text[: 4 * _MOST_EXPLANATION]).strip()
    return redacted(_SIGNATURES.sub("***", line), secrets)[:_MOST_EXPLANATION].rstrip(". ")


def parse_xml(answer: Answer, *roots: str) -> ET.Element:
    """The document in an answer, without namespaces.

    Raises:
        AnswerError: It is an error: S3 answers 200 before it knows that it fails.
        UnreadableAnswerError: It is another document than one of ``roots``, or none, or not whole.
    """
    root = _document(answer.body)
    if root is not None and root.tag == "Error":
        raise AnswerError(500, _text(root, "Code"), _text(root, "Message"))
    if root is None or root.tag not in roots:
        raise UnreadableAnswerError
    return root


def xml_error(body: bytes) -> tuple[str, str]:
    """Return code and message of an error document; empty strings for other answers."""
    root = _document(body)
    return (_text(root, "Code"), _text(root, "Message")) if root is not None and root.tag == "Error" else ("", "")


def _document(body: bytes) -> ET.Element | None:
    if b"<!" in body:
        # Stores do not declare entities; a document that does is an attack.
        return None
    try:
        root = ET.fromstring(body)  # noqa: S314 - without a document type it holds nothing to expand
    except (ET.ParseError, ValueError, LookupError, RecursionError):
        return None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _text(element: ET.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def required(element: ET.Element, name: str) -> str:
    """The text of a child.

    Raises:
        UnreadableAnswerError: The element is missing.
    """
    found = element.findtext(name)
    if found is None:
        raise UnreadableAnswerError
    return found


def joined(views: Iterable[memoryview]) -> bytes:
    """The bytes of a small body."""
    return b"".join(views)


def described_by_headers(answer: Answer) -> ObjectInfo:
    """The object that an answer describes as HTTP does.

    Raises:
        UnreadableAnswerError: It describes none.
    """
    try:
        size = int(answer.headers["content-length"])
        modified = in_utc(email.utils.parsedate_to_datetime(answer.headers["last-modified"]))
    except (KeyError, ValueError, OverflowError):
        raise UnreadableAnswerError("the answer tells neither size nor time of an object") from None
    return ObjectInfo("", size, modified)


def in_utc(time: dt.datetime) -> dt.datetime:
    """A time that a store told. One without a time zone is UTC, whatever the time zone of this machine.

    Raises:
        OverflowError: It is beyond the calendar.
    """
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
