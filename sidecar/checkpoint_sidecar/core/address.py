"""Addresses of snapshots: the URL of a run, and perhaps a snapshot of it: ``s3://bucket/run@best``.

An "@" is legal in the path of a URL. It begins a selector only in the last segment, and only the last one counts, so a
run whose last segment contains an "@" is addressed with an explicit selector or with a slash at the end:
``s3://bucket/me@home/`` is that run, ``s3://bucket/me@home@latest`` its newest snapshot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import parse_url

_SELECTOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class RunAddress:
    """A run, and the snapshot that is meant.

    Attributes:
        url: Canonical URL of the run.
        selector: ``latest``, ``best``, a step, or an id or the start of one; empty if only the run was named.
    """

    url: str
    selector: str = ""

    def __str__(self) -> str:
        if self.selector:
            return f"{self.url}@{self.selector}"
        return f"{self.url}/" if "@" in self.url.rpartition("/")[2] else self.url


def parse_address(text: str) -> RunAddress:
    """Take an address apart.

    Raises:
        ConfigurationError: The URL is invalid, or the text after the last "@" is not a selector.
    """
    head, slash, last = text.rpartition("/")
    # In "s3://user:password@bucket" the "@" stands in the place of the bucket, where no selector can be.
    if "@" not in last or _in_bucket(text):
        return RunAddress(_checked(text))
    name, _, selector = last.rpartition("@")
    if not _SELECTOR.fullmatch(selector):
        raise ConfigurationError(
            "read the address",
            repr(_without_user(text)),
            f"{selector!r} is neither latest, best, a step nor a snapshot id" if selector else "nothing follows the @",
            "Write <url>@latest, <url>@best, <url>@<step> or <url>@<id>; end the URL with / if the @ is part of it.",
        )
    return RunAddress(_checked(f"{head}{slash}{name}"), selector)


def _in_bucket(text: str) -> bool:
    scheme = _SCHEME.match(text)
    return scheme is not None and "/" not in text[scheme.end() :] and not text.startswith("file:")


def _without_user(text: str) -> str:
    return re.sub(r"//[^/]*@", "//...@", text)


def _checked(url: str) -> str:
    if _SCHEME.match(url) and not url.startswith(("s3://", "gs://", "az://", "file://")):
        # Served through fsspec, whose URLs have forms of their own.
        return url
    return parse_url(url).url
