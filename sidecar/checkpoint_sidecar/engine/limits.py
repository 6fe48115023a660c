"""Resource limits for transfers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from checkpoint_sidecar.core.errors import ConfigurationError

MEMORY = "CHECKPOINT_MEMORY"
CONNECTIONS = "CHECKPOINT_CONNECTIONS"
STALL_SECONDS = "CHECKPOINT_STALL_SECONDS"

LEAST_MEMORY_BYTES = 32 * 1024 * 1024
"""Minimum memory: one part of an object."""
MOST_CONNECTIONS = 256
_STALL_WANTED = "a number of seconds above 0, such as 180"

_QUANTITY = re.compile(r"(\d{1,15})(Ki|Mi|Gi|Ti|k|M|G|T)?")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_FACTORS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits of each process.

    Attributes:
        memory_bytes: Maximum memory of a save or restore beyond the tensors themselves.
        connections: Maximum of concurrent requests to the store.
        beside_training: Whether training needs the processor at the same time.
        stall_seconds: Timeout of a save that moves no bytes while training waits for it. The default is longer than a
            store may be silent before a request is retried.

    Raises:
        ConfigurationError: A limit is out of range.
    """

    memory_bytes: int = 256 * 1024 * 1024
    connections: int = 16
    beside_training: bool = False
    stall_seconds: float = 180.0

    def __post_init__(self) -> None:
        if self.memory_bytes < LEAST_MEMORY_BYTES:
            raise _unusable(MEMORY, f"{self.memory_bytes} bytes", f"at least {LEAST_MEMORY_BYTES} bytes (32Mi)")
        if not 1 <= self.connections <= MOST_CONNECTIONS:
            raise _unusable(CONNECTIONS, str(self.connections), f"a whole number from 1 to {MOST_CONNECTIONS}")
        if not self.stall_seconds > 0:
            raise _unusable(STALL_SECONDS, str(self.stall_seconds), _STALL_WANTED)

    @property
    def threads_at_first(self) -> int:
        """Initial number of threads: one for each core of this rank, or for every fourth one beside training."""
        cores = cores_of_rank()
        return max(1, cores // 4) if self.beside_training else cores

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> EngineSettings:
        """Return the defaults, overridden by the environment variables above.

        Raises:
            ConfigurationError: A variable is invalid.
        """
        settings = cls()
        if text := environ.get(MEMORY, ""):
            settings = replace(settings, memory_bytes=_quantity(text))
        if text := environ.get(CONNECTIONS, ""):
            if not re.fullmatch(r"\d{1,9}", text):
                raise _unusable(CONNECTIONS, repr(text), f"a whole number from 1 to {MOST_CONNECTIONS}")
            settings = replace(settings, connections=int(text))
        if text := environ.get(STALL_SECONDS, ""):
            if not re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text):
                raise _unusable(STALL_SECONDS, repr(text), _STALL_WANTED)
            settings = replace(settings, stall_seconds=float(text))
        return settings


def cores_of_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Return this rank's share of the cores that the process may use, among the ranks of torchrun on this node."""
    ranks = environ.get("LOCAL_WORLD_SIZE", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, int(ranks) if ranks.isdecimal() else 1))


def _quantity(text: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise _unusable(MEMORY, repr(text), "a whole quantity of bytes such as 256Mi or 1G")
    return int(match[1]) * _FACTORS[match[2] or ""]


def _unusable(name: str, value: str, wanted: str) -> ConfigurationError:
    return ConfigurationError("read the setting", name, f"{value} is not valid", f"Set it to {wanted}.")
