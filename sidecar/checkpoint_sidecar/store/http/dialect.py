"""The common interface of the protocols of S3, Google Cloud Storage and Azure: requests and their answers."""

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
"""Maximum size of a page of a listing: 5,000 keys of 1,024 bytes, each of them escaped."""

_MOST_EXPLANATION = 300
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
_SIGNATURES = re.compile(r"(?i)[^\s,;]*(?:signature|credential|token|sig)=[^\s,;]*|AWS4-HMAC-SHA256|Bearer\s+\S+")


@dataclass(frozen=True, slots=True)
class Message:
    """A request before it is signed.

    Attributes:
        path: Path below the base URL, escaped; empty for the base itself.
        body: Views in bytes.
        success: The statuses of a success; any other raises ``AnswerError``.
        checksum_headers: Headers that some servers do not implement and that may be left out.
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
    """One page of a listing; ``token`` requests the next one and is empty on the last."""

    objects: Sequence[ObjectInfo]
    token: str = ""


@dataclass(frozen=True, slots=True)
class UploadPage:
    """One page of the unfinished uploads; ``query`` requests the next one and is empty on the last."""

    uploads: Sequence[UnfinishedUpload]
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeptObject:
    """An object that was not deleted, and the reason."""

    key: str
    code: str
    explanation: str


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A stored part: its tag, and its CRC32C if the store received one."""

    tag: str
    crc32c: int | None


class AnswerError(Exception):
    """Raised for an answer that refuses or redirects a request.

    Args:
        code: The store's error code; may be empty.
        explanation: The store's own message, without secrets.
        location: Target of a redirect, or empty.
        asked: Host and port that received the request.
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
    """Raised for an answer whose status is a success, but whose content is incomplete.

    Args:
        cause: The missing part; empty if the answer may have been damaged in transit, so that a retry may help.
    """

    def __init__(self, cause: str = "") -> None:
        super().__init__(cause)
        self.cause = cause


class Dialect(ABC):
    """Builds the requests of one identity for one bucket. Keys are complete, with the store's prefix.

    Attributes:
        base: Base URL of all requests.
        ca_file: File of the trusted authorities; empty for the system's.
        keys_per_delete: Maximum number of keys in one delete request.
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
        """Secrets to remove from the store's messages."""
        return self._values

    @abstractmethod
    def signed(self, message: Message, url: str) -> tuple[str, Mapping[str, str]]:
        """Return the URL and headers of a request, signed with the present identity.

        Raises:
            StoreError: No identity was found.
        """

    @abstractmethod
    def put(self, key: str, body: Sequence[memoryview], crc32c: int, *, create: bool) -> Message:
        """Write an object; with ``create`` only if the key is free."""

    def check_written(self, answer: Answer, crc32c: int) -> None:  # noqa: B027 - most stores check it themselves
        """Raise an error if the answer to ``put`` shows that the store has other bytes."""

    @abstractmethod
    def get(self, key: str, start: int | None = None, length: int = 0) -> Message:
        """Read an object, or ``length`` bytes of it from ``start``."""

    @abstractmethod
    def head(self, key: str) -> Message:
        """Describe an object."""

    @abstractmethod
    def list(self, prefix: str, after: str, token: str) -> Message:
        """Request a page of the objects whose keys start with ``prefix``, optionally only those after ``after``."""

    @abstractmethod
    def listed(self, answer: Answer) -> Page:
        """Parse such a page; the objects have complete keys.

        Raises:
            UnreadableAnswerError: The answer is not a page of a listing.
        """

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> Message:
        """Delete at most ``keys_per_delete`` objects."""

    def kept(self, answer: Answer) -> Sequence[KeptObject]:  # noqa: ARG002
        """Return the objects that a request for several did not delete. Missing objects count as deleted.

        Raises:
            UnreadableAnswerError: The answer does not confirm a deletion.
        """
        raise UnreadableAnswerError

    def copy(self, key: str, source: str) -> Message | None:  # noqa: ARG002
        """Copy an object of this service. Returns None if this store does not copy in one request.

        Args:
            source: Bucket and key.
        """
        return None

    def copied(self, answer: Answer) -> int | None:  # noqa: ARG002
        """Return the CRC32C of a copy; None if the store does not report it."""
        return None

    @abstractmethod
    def failure(self, message: Message, answer: Answer) -> tuple[str, str]:
        """Return the code and explanation of an error."""


class PartsDialect(Dialect):
    """A dialect that writes large objects in parts, in any order."""

    def begin_upload(self, key: str) -> Message | None:
        """Begin an object in parts. Returns None if the store does not require that."""

    def upload_id(self, answer: Answer) -> str:  # noqa: ARG002
        """Return the id of the upload that was begun."""
        raise UnreadableAnswerError

    @abstractmethod
    def part(self, key: str, upload_id: str, index: int, body: Sequence[memoryview], crc32c: int) -> Message:
        """Write one part."""

    def copied_part(self, key: str, upload_id: str, index: int, source: str, start: int, length: int) -> Message | None:  # noqa: ARG002
        """Copy one part out of an object of this service. Returns None if this store does not copy ranges.

        Args:
            source: Bucket and key.
        """
        return None

    def stored_copy(self, answer: Answer) -> StoredPart:  # noqa: ARG002
        """Return the tag and checksum of a copied part."""
        raise UnreadableAnswerError

    @abstractmethod
    def tag(self, answer: Answer) -> str:
        """Return the tag of a stored part, which completing requires."""

    @abstractmethod
    def complete_upload(self, key: str, upload_id: str, parts: Sequence[StoredPart]) -> Message:
        """Publish the object."""

    def check_completed(self, answer: Answer) -> None:
        """Raise an error unless the answer confirms that the object is published."""

    def abort_upload(self, key: str, upload_id: str) -> Message | None:
        """Discard the parts. Returns None if the store does so by itself."""

    def unfinished(self, prefix: str, query: Mapping[str, str]) -> Message | None:
        """Request a page of the unfinished uploads. Returns None if the store discards them by itself."""

    def listed_uploads(self, answer: Answer) -> UploadPage:  # noqa: ARG002
        """Parse such a page."""
        raise UnreadableAnswerError


class StreamDialect(Dialect):
    """A dialect that writes large objects from the beginning to the end."""

    @abstractmethod
    def begin_stream(self, key: str) -> Message:
        """Begin an upload."""

    @abstractmethod
    def stream_id(self, answer: Answer) -> str:
        """Return the id of the upload that was begun."""

    @abstractmethod
    def stream(self, key: str, stream_id: str, body: Sequence[memoryview], start: int, size: int) -> Message:
        """Send bytes from ``start`` of an object of ``size``; none to query how many are stored.

        The last byte publishes the object.
        """

    @abstractmethod
    def streamed(self, answer: Answer, size: int) -> int:
        """Return how many bytes are stored."""

    @abstractmethod
    def abort_stream(self, key: str, stream_id: str) -> Message:
        """Discard an upload."""


def url_of(base: str, message: Message) -> str:
    """Return the URL of a message."""
    query = urlencode(sorted(message.query.items()), quote_via=quote, safe="-_.~")
    return f"{base}{'/' if message.path else ''}{message.path}{'?' if query else ''}{query}"


def escaped(key: str, *, safe: str = "/-_.~") -> str:
    """Return a key as a path."""
    return quote(key, safe=safe)


def explanation_of(text: str, secrets: Mapping[str, str]) -> str:
    """Return a store's message in one line of bounded length, without signatures and secrets."""
    line = _UNPRINTABLE.sub(" ", text[: 4 * _MOST_EXPLANATION]).strip()
    return redacted(_SIGNATURES.sub("***", line), secrets)[:_MOST_EXPLANATION].rstrip(". ")


def parse_xml(answer: Answer, *roots: str) -> ET.Element:
    """Return the document in an answer, without namespaces.

    Raises:
        AnswerError: It is an error: S3 answers 200 before it knows whether it fails.
        UnreadableAnswerError: Its root is not one of ``roots``, or it is missing or incomplete.
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
    """Return the text of a child element.

    Raises:
        UnreadableAnswerError: The element is missing.
    """
    found = element.findtext(name)
    if found is None:
        raise UnreadableAnswerError
    return found


def joined(views: Iterable[memoryview]) -> bytes:
    """Return the bytes of a small body."""
    return b"".join(views)


def described_by_headers(answer: Answer) -> ObjectInfo:
    """Return the object that an answer's HTTP headers describe.

    Raises:
        UnreadableAnswerError: The headers are missing or invalid.
    """
    try:
        size = int(answer.headers["content-length"])
        modified = in_utc(email.utils.parsedate_to_datetime(answer.headers["last-modified"]))
    except (KeyError, ValueError, OverflowError):
        raise UnreadableAnswerError("the answer tells neither size nor time of an object") from None
    return ObjectInfo("", size, modified)


def in_utc(time: dt.datetime) -> dt.datetime:
    """Return a store's time in UTC. Without a time zone it is UTC, regardless of this machine's zone.

    Raises:
        OverflowError: It is outside the calendar.
    """
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
