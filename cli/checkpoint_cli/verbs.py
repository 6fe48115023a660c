"""The verbs of both programs: where each is, and its line in the help. Their modules are imported when they run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Door(StrEnum):
    """The two programs."""

    BUCKET = "checkpoint"
    CLUSTER = "kubectl ckpt"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb.

    Attributes:
        module: Name of the module below ``checkpoint_cli`` that holds the function ``command``.
        summary: Its line in the list of verbs.
    """

    name: str
    module: str
    summary: str


BUCKET_VERBS: tuple[Verb, ...] = (
    Verb("report", "bucket.report", "Write one HTML page about a run."),
    Verb("completion", "completion", "Print the completion script of a shell."),
)

CLUSTER_VERBS: tuple[Verb, ...] = (Verb("completion", "completion", "Print the completion script of a shell."),)


def verbs_of(door: Door) -> tuple[Verb, ...]:
    """Return the verbs of a program in the order of its help."""
    return BUCKET_VERBS if door is Door.BUCKET else CLUSTER_VERBS
