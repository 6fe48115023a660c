"""``_run.json``: marks, outside the log, that a run exists here. Without a log beside it, the log was lost."""

from __future__ import annotations

import msgspec

from checkpoint_sidecar.core.log import Digest, Owner
from checkpoint_sidecar.core.log_format import FORMAT, Format
from checkpoint_sidecar.core.run import Run

MAX_MARKER_BYTES = 64 * 1024


class Marker(msgspec.Struct, frozen=True, rename="camel"):
    """The content of the marker.

    Attributes:
        identity: SHA-256 of the bytes of the run's first log entry.
    """

    format: Format
    identity: Digest
    owner: Owner


def encode(run: Run) -> bytes:
    """Return the bytes of a claimed run's marker."""
    assert run.owner is not None
    return msgspec.json.encode(Marker(FORMAT, run.identity, run.owner))


def decode(data: bytes) -> Marker | None:
    """Read a marker, or None if the object is not ours."""
    try:
        return msgspec.json.decode(data, type=Marker)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
