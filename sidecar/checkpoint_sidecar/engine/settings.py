"""How much of the machine moving bytes may take."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from checkpoint_sidecar.core.errors import ConfigurationError

MEMORY = "CHECKPOINT_MEMORY"
CONNECTIONS = "CHECKPOINT_CONNECTIONS"

LEAST_MEMORY_BYTES = 32 * 1024 * 1024
"""One part of an object. With less there is no room for anything."""
MOST_CONNECTIONS = 256

_QUANTITY = re.compile(r"(\d{1,15})(Ki|Mi|Gi|Ti|k|M|G|T)?")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_FACTORS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits of each process.

    Attributes:
        memory_bytes: What a save or a restore may hold in memory beyond the tensors themselves.
        connections: Requests to the store side by side.

    Raises:
        ConfigurationError: A limit cannot work.
    """

    memory_bytes: int = 256 * 1024 * 1024
    connections: int = 16

    def __post_init__(self) -> None:
        if self.memory_bytes < LEAST_MEMORY_BYTES:
            raise _unusable(MEMORY, f"{self.memory_bytes} bytes", f"at least {LEAST_MEMORY_BYTES} bytes (32Mi)")
        if not 1 <= self.connections <= MOST_CONNECTIONS:
            raise _unusable(CONNECTIONS, str(self.connections), f"a whole number from 1 to {MOST_CONNECTIONS}")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> EngineSettings:
        """The defaults, but for what ``CHECKPOINT_MEMORY`` and ``CHECKPOINT_CONNECTIONS`` say.

        Raises:
            ConfigurationError: One of them makes no sense.
        """
        given: dict[str, int] = {}
        if text := environ.get(MEMORY, ""):
            given["memory_bytes"] = _quantity(text)
        if text := environ.get(CONNECTIONS, ""):
            if not re.fullmatch(r"\d{1,9}", text):
                raise _unusable(CONNECTIONS, repr(text), f"a whole number from 1 to {MOST_CONNECTIONS}")
            given["connections"] = int(text)
        return cls(**given)


def _quantity(text: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise _unusable(MEMORY, repr(text), "a whole quantity of bytes such as 256Mi or 1G")
    return int(match[1]) * _FACTORS[match[2] or ""]


def _unusable(name: str, value: str, wanted: str) -> ConfigurationError:
    return ConfigurationError("read the engine's settings", name, f"{value} cannot work", f"Give {wanted}.")
