"""Checks URLs of runs, and whether two of them would share objects.

Every store must see the same keys, so only characters that stores and URL parsers never reinterpret are allowed, and
URLs are not decoded, resolved or normalized: the path of a URL is the prefix of its keys, byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from checkpoint_sidecar.core.errors import ConfigurationError

OBJECT_SCHEMES = ("s3", "gs", "az")
MAX_URL_LENGTH = 512  # object keys end at 1024 bytes; our own part of a key stays below 256
ENDPOINT_PATTERN = r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?"
"""Matches an endpoint: scheme, host, port. The CRD has the same pattern, in a syntax that both engines read alike.

It admits only characters that no URL parser, shell or kubelet reinterprets: no escapes, no backslashes, no `$(NAME)`.
"""

_URL = re.compile(r"([a-z][a-z0-9]*)://([^/]*)(/.*)?", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_SEGMENT = re.compile(r"[A-Za-z0-9._~=+@,:-]+")
# Users name local folders: spaces and any alphabet are allowed, but no characters of a URL's query or escapes.
_FILE_SEGMENT = re.compile(r"[^\x00-\x1f\x7f\\?#%]+")
_ENDPOINT = re.compile(ENDPOINT_PATTERN)


@dataclass(frozen=True, slots=True)
class Location:
    """A checked URL, taken apart.

    Attributes:
        scheme: ``s3``, ``gs``, ``az`` or ``file``.
        bucket: Bucket or container; empty for ``file``.
        path: Path without slashes at its ends; may be empty, except for ``file``.
    """

    scheme: str
    bucket: str
    path: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}".rstrip("/")

    @property
    def prefix(self) -> str:
        """Start of every key in the bucket."""
        return f"{self.path}/" if self.path else ""


def check_url(url: str, *, allow_file: bool = True) -> str:
    """Return the URL in canonical form: without a trailing slash, and ``file://`` before an absolute path.

    Raises:
        ConfigurationError: It is not a valid location of a run; the message says what is allowed.
    """
    return parse_url(url, allow_file=allow_file).url


def parse_url(url: str, *, allow_file: bool = True) -> Location:
    """Check a URL like ``check_url``, and return its parts."""
    if len(url) > MAX_URL_LENGTH:
        raise _refused(url[:64] + "...", f"it is longer than {MAX_URL_LENGTH} characters", allow_file)
    match = _URL.fullmatch(f"file://{url}" if url.startswith("/") else url)
    # A name and a password may precede an "@"; they must not reach a log.
    shown = re.sub(r"//[^/]*@", "//...@", url)
    if match is None:
        raise _refused(shown, "it is not <scheme>://<bucket>/<path>", allow_file)
    scheme, bucket, path = match[1], match[2], (match[3] or "").strip("/")
    cause = _fault(scheme, bucket, path, allow_file)
    if cause:
        raise _refused(shown, cause, allow_file)
    return Location(scheme, bucket, path)


def parse_endpoint(url: str) -> tuple[str, str, int | None]:
    """Return the scheme, host and port of an endpoint.

    Raises:
        ValueError: It is not ``http(s)://<host>[:<port>]``, or the port is out of range.
    """
    match = _ENDPOINT.fullmatch(url)
    if match is None:
        # It may contain a password, so the message does not repeat it.
        raise ValueError("it is not http(s)://<host>[:<port>], with a host of letters, digits and . _ -")
    port = int(match[3]) if match[3] else None
    if port is not None and not 0 < port < 65536:
        raise ValueError("its port is not between 1 and 65535")
    return match[1], match[2], port


def overlaps(one: str, other: str) -> bool:
    """Return whether two checked URLs share keys: they are equal, or one is inside the other.

    Endpoints are not compared: one bucket name at two endpoints counts as the same bucket.
    """
    a, b = parse_url(one), parse_url(other)
    if (a.scheme, a.bucket) != (b.scheme, b.bucket):
        return False
    first, second = _segments(a.path), _segments(b.path)
    shared = min(len(first), len(second))
    return first[:shared] == second[:shared]


def _fault(scheme: str, bucket: str, path: str, allow_file: bool) -> str:
    if scheme == "file":
        if not allow_file:
            return "local files are not allowed here"
        if bucket or not path:
            return "a file URL is file:///<absolute path>"
    elif scheme not in OBJECT_SCHEMES:
        return f"the scheme {scheme} is unknown"
    elif not bucket:
        return "the bucket is empty"
    elif not _BUCKET.fullmatch(bucket):
        return "the bucket's name has invalid characters (leave out user names, passwords and ports)"
    segment = _FILE_SEGMENT if scheme == "file" else _SEGMENT
    for part in _segments(path):
        if part in (".", ".."):
            return f"the path contains {part!r}"
        if not part:
            return "the path contains an empty part"
        if "::" in part:
            return "chained URLs (::) are not allowed"
        if not segment.fullmatch(part):
            return "the path contains characters that stores or URL parsers reinterpret"
    return ""


def _segments(path: str) -> list[str]:
    return path.split("/") if path else []


def _refused(shown: str, cause: str, allow_file: bool) -> ConfigurationError:
    forms = [f"{scheme}://<bucket>/<path>" for scheme in OBJECT_SCHEMES]
    if allow_file:
        forms.append("file:///<absolute path>")
    hint = f"Use {' or '.join(forms)}, with letters, digits and . _ ~ = + @ , : - in the path."
    return ConfigurationError("check the storage URL", repr(shown), cause, hint)
