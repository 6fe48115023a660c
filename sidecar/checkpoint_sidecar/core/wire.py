"""Decoding of untrusted JSON: bounded types, and one error for every exception of the decoder.

The bounds are those of the Kubernetes API (``crds/*.yaml``): every value that can be read can also be shown in a
status. Without them one absurd number in a log would make the API server refuse that status forever.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1

MAX_SECONDS = float(MAX_INT32)
"""68 years: longer than any duration of the API, and short enough to be added to any date."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT64)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT64)]
SmallPositive = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT32)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0, le=MAX_SECONDS)]

T = TypeVar("T")


class UndecodableError(ValueError):
    """Raised if the bytes are not JSON of the wanted type; the message says why."""


def decode_json(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Return the value that the bytes encode.

    Raises:
        UndecodableError: They are not JSON or UTF-8, are nested too deeply, or encode a value of another type or out of
            bounds.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    # Besides its own errors, msgspec passes on those of Python's decoders. Callers bound the memory by reading at
    # most a fixed size; a MemoryError is therefore just another reason to refuse these bytes.
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise UndecodableError(f"{error}" or type(error).__name__) from error
