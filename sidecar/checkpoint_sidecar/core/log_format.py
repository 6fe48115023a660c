"""The version in every object of a run's log. A reader refuses a larger major one; a larger minor one only adds."""

from __future__ import annotations

from typing import Annotated

import msgspec

from checkpoint_sidecar.core.errors import LogError
from checkpoint_sidecar.core.wire import decode_json

FORMAT_MAJOR = 1
FORMAT = f"{FORMAT_MAJOR}.0"

Format = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}\Z")]


class _Version(msgspec.Struct, frozen=True):
    """The field that every format has. It is read first, because a later major may change all others."""

    format: Format


def check_format(data: bytes, operation: str, subject: str) -> None:
    """Raise an error unless this version can read the ``format`` of a JSON object.

    Raises:
        LogError: Its major version is larger.
        UndecodableError: It has no format.
    """
    check_version(decode_json(data, _Version).format, operation, subject)


def check_version(version: str, operation: str, subject: str) -> None:
    """Raise an error unless this version can read a format.

    Raises:
        LogError: Its major version is larger.
    """
    if int(version.partition(".")[0]) > FORMAT_MAJOR:
        raise LogError(
            operation,
            subject,
            f"it has format {version}, but this version reads up to {FORMAT_MAJOR}.x",
            "Upgrade checkpoint-operator here.",
        )
