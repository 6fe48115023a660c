"""Finds mismatches between a snapshot and the objects it is loaded into, and decides if they are fatal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from checkpoint_sidecar.core.errors import IncompatibleSnapshotError

MOST_NAMES = 32
"""Maximum number of names in a message or log entry; the others are counted."""


@dataclass(slots=True)
class Leftovers:
    """Mismatches of a restore.

    Attributes:
        missing: Names that the objects have and the snapshot lacks.
        absent: Optional objects that the snapshot lacks.
        unused: Names that the snapshot has and the objects lack.
        gone: Objects of the snapshot that the state does not have.
        misfits: Reasons why a stored value does not fit its destination, each with its name.
    """

    missing: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    misfits: set[str] = field(default_factory=set)

    @classmethod
    def of_all(cls, ranks: Sequence[Leftovers]) -> Leftovers:
        """Combine the mismatches of all ranks: a name that one rank uses counts as used."""
        return cls(
            missing=set().union(*(each.missing for each in ranks)),
            absent=set().union(*(each.absent for each in ranks)),
            unused=set.intersection(*(each.unused for each in ranks)),
            gone=set.intersection(*(each.gone for each in ranks)),
            misfits=set().union(*(each.misfits for each in ranks)),
        )

    @property
    def not_restored(self) -> tuple[str, ...]:
        """Names that keep their present state, bounded."""
        return bounded(self.missing | self.absent)

    @property
    def not_used(self) -> tuple[str, ...]:
        """Names in the snapshot that are not restored, bounded."""
        return bounded(self.unused | self.gone)


def refusal(leftovers: Leftovers, subject: str, *, strict: bool) -> IncompatibleSnapshotError | None:
    """Return why the snapshot must not be loaded, or None.

    Args:
        strict: Whether names that only one side has are fatal. Objects that the state lacks never are.
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
        causes.append(f"the objects do not accept {', '.join(bounded(leftovers.unused))}")
    return IncompatibleSnapshotError(
        operation,
        subject,
        "; ".join(causes),
        "Build the objects as they were when the snapshot was saved, wrap an object that a snapshot may lack in "
        "Optional(...), or pass strict=False to restore what both sides have.",
    )


def bounded(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in order; if there are many, the first ones and a count."""
    ordered = sorted(names)
    if len(ordered) <= MOST_NAMES:
        return tuple(ordered)
    return (*ordered[: MOST_NAMES - 1], f"and {len(ordered) - MOST_NAMES + 1} more")
