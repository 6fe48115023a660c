"""What does not match between a snapshot and the objects it is loaded into, and whether that is fatal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from checkpoint_sidecar.core.errors import IncompatibleSnapshotError

MOST_NAMES = 32
"""Names in a message or log entry; the rest is counted."""


@dataclass(slots=True)
class Leftovers:
    """What a restore cannot match.

    Attributes:
        missing: Names that the objects want and the snapshot lacks.
        absent: Optional objects that the snapshot lacks.
        unused: Names that the snapshot has and the objects do not take.
        gone: Objects of the snapshot that the state does not have.
        misfits: Reasons why a stored value cannot be put where it belongs, each with its name.
    """

    missing: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    misfits: set[str] = field(default_factory=set)

    @classmethod
    def of_all(cls, ranks: Sequence[Leftovers]) -> Leftovers:
        """What the ranks together cannot match: one that takes a name takes it for all."""
        return cls(
            missing=set().union(*(each.missing for each in ranks)),
            absent=set().union(*(each.absent for each in ranks)),
            unused=set.intersection(*(each.unused for each in ranks)),
            gone=set.intersection(*(each.gone for each in ranks)),
            misfits=set().union(*(each.misfits for each in ranks)),
        )

    @property
    def not_restored(self) -> tuple[str, ...]:
        """What keeps the state it has, bounded."""
        return bounded(self.missing | self.absent)

    @property
    def not_used(self) -> tuple[str, ...]:
        """What stays in the snapshot, bounded."""
        return bounded(self.unused | self.gone)


def refusal(leftovers: Leftovers, subject: str, *, strict: bool) -> IncompatibleSnapshotError | None:
    """Why the snapshot must not be loaded, or None.

    Args:
        strict: Whether names that only one side has are fatal. Objects that the state does not have never are.
    """
    operation = "restore"
    if leftovers.misfits:
        return IncompatibleSnapshotError(
            operation,
            subject,
            "; ".join(bounded(leftovers.misfits)),
            "Build the objects as they were when the snapshot was saved, or give the state other names.",
        )
    if not strict or not (leftovers.missing or leftovers.unused):
        return None
    causes = []
    if leftovers.missing:
        causes.append(f"the snapshot lacks {', '.join(bounded(leftovers.missing))}")
    if leftovers.unused:
        causes.append(f"the objects do not take {', '.join(bounded(leftovers.unused))}")
    return IncompatibleSnapshotError(
        operation,
        subject,
        "; ".join(causes),
        "Build the objects as they were when the snapshot was saved, wrap an object that a snapshot may lack in "
        "Optional(...), or pass strict=False to restore what both sides have.",
    )


def bounded(names: Iterable[str]) -> tuple[str, ...]:
    """The names in order; of many the first ones and a count."""
    ordered = sorted(names)
    if len(ordered) <= MOST_NAMES:
        return tuple(ordered)
    return (*ordered[: MOST_NAMES - 1], f"and {len(ordered) - MOST_NAMES + 1} more")
