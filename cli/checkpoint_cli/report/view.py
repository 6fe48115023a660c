"""Everything that a report shows, decided: a frozen value that the drawing turns into markup. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from checkpoint_cli.report.events import Story, story_of
from checkpoint_cli.report.facts import RunFacts
from checkpoint_cli.report.goodput import Goodput, goodput_of
from checkpoint_cli.report.history import RunHistory, ShownState, SnapshotLife, history_of
from checkpoint_cli.report.metrics import Metrics, metrics_of
from checkpoint_cli.report.storage import Storage, storage_of

MAX_ROWS = 1000
"""Number of snapshots up to which each has its own row; of more, neighbors of one state share a row."""

_SINGLE = 600
_NEWEST = 100
_GROUPS = 200


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One row of the table of snapshots: a snapshot, or several in order of commit that share a state."""

    id: str
    lives: tuple[SnapshotLife, ...]

    @property
    def life(self) -> SnapshotLife:
        """The newest of them."""
        return self.lives[-1]


@dataclass(frozen=True, slots=True)
class RunReport:
    """A report, ready to be drawn.

    Attributes:
        rows: Newest first.
        row_ids: Id of its row, by snapshot id.
    """

    history: RunHistory
    goodput: Goodput
    storage: Storage
    metrics: Metrics
    story: Story
    rows: tuple[SnapshotRow, ...]
    row_ids: Mapping[str, str]

    def in_state(self, *states: ShownState) -> tuple[SnapshotLife, ...]:
        """Return the snapshots in one of these states, in order of commit."""
        return tuple(life for life in self.history.lives if life.state in states)


def report_of(facts: RunFacts) -> RunReport:
    """Decide everything that the report of a run shows."""
    history = history_of(facts)
    rows = tuple(reversed([*_rows(history.lives)]))
    return RunReport(
        history=history,
        goodput=goodput_of(history),
        storage=storage_of(history),
        metrics=metrics_of(history),
        story=story_of(history),
        rows=rows,
        row_ids={life.snapshot.id: row.id for row in rows for life in row.lives},
    )


def _rows(lives: Sequence[SnapshotLife]) -> Iterator[SnapshotRow]:
    if len(lives) <= MAX_ROWS:
        yield from (_row((life,)) for life in lives)
        return
    single = _single(lives)
    chunk = -(-(len(lives) - len(single)) // _GROUPS)
    for (_, _, alone), group in groupby(
        lives, key=lambda life: (life.state, life.in_lineage, life.snapshot.id in single)
    ):
        members = tuple(group)
        size = 1 if alone else chunk
        yield from (_row(members[start : start + size]) for start in range(0, len(members), size))


def _single(lives: Sequence[SnapshotLife]) -> frozenset[str]:
    """The snapshots with a row of their own: the most interesting ones first, up to a limit."""
    newest = {life.snapshot.id for life in lives[-_NEWEST:]}

    def interest(life: SnapshotLife) -> int:
        if life.state in (ShownState.HELD, ShownState.DAMAGED) or life.snapshot.id in newest:
            return 0
        return {ShownState.KEPT: 1, ShownState.RETIRED: 2}.get(life.state, 3)

    chosen = sorted(lives, key=lambda life: (interest(life), -life.snapshot.number))[:_SINGLE]
    return frozenset(life.snapshot.id for life in chosen if interest(life) < 3)


def _row(lives: tuple[SnapshotLife, ...]) -> SnapshotRow:
    return SnapshotRow(f"s-{lives[0].snapshot.number}", lives)
