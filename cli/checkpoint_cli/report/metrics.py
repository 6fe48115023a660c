"""The metrics of a run's snapshots by step. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from checkpoint_cli.report.history import RunHistory, ShownState, SnapshotLife
from checkpoint_sidecar.core.best import best_first, metric_value
from checkpoint_sidecar.core.policy import KeepBest
from checkpoint_sidecar.core.run import SnapshotState

LARGEST = 1e100
"""Values beyond are left out: differences of larger ones are no finite numbers."""

MAX_METRICS = 8
"""Number of metrics that a report draws; the others are counted."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """The value of one snapshot.

    Attributes:
        kept: Whether the snapshot is live.
        best_for: Whether ``keepBest`` keeps it for this metric.
    """

    life: SnapshotLife
    step: int
    value: float
    kept: bool
    best_for: bool


@dataclass(frozen=True, slots=True)
class MetricSeries:
    """One metric of a run.

    Attributes:
        rule: The ``keepBest`` rule for it, or None.
        points: Of the lineage, by step.
        abandoned: Of snapshots outside of it, in order of commit.
        best: The best live one by ``rule``, or None.
    """

    name: str
    rule: KeepBest | None
    points: tuple[MetricPoint, ...]
    abandoned: tuple[MetricPoint, ...]
    best: MetricPoint | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics to draw, and the number of those left out."""

    series: tuple[MetricSeries, ...]
    left_out: int


def metrics_of(history: RunHistory) -> Metrics:
    """Collect the metrics: those of ``keepBest`` first, then the ones that most snapshots have."""
    retention = history.facts.run.policy.retention
    rules = {rule.metric: rule for rule in (retention.keep_best if retention else ())}
    known = Counter(
        name for life in history.lives if life.state is not ShownState.REJECTED for name in life.snapshot.commit.metrics
    )
    names = [name for name in rules if name in known]
    names += [name for name, _ in sorted(known.items(), key=lambda item: (-item[1], item[0])) if name not in rules]
    series = [found for name in names[:MAX_METRICS] if (found := _series(history, name, rules.get(name)))]
    return Metrics(tuple(series), max(len(names) - MAX_METRICS, 0))


def _series(history: RunHistory, name: str, rule: KeepBest | None) -> MetricSeries | None:
    points: list[MetricPoint] = []
    abandoned: list[MetricPoint] = []
    for life in history.lives:
        point = _point(life, name)
        if point is not None:
            (points if life.in_lineage else abandoned).append(point)
    if not points and not abandoned:
        return None
    points.sort(key=lambda point: point.step)
    return MetricSeries(name, rule, tuple(points), tuple(abandoned), _best(points, rule))


def _point(life: SnapshotLife, name: str) -> MetricPoint | None:
    snapshot = life.snapshot
    if snapshot.state is SnapshotState.REJECTED or (exact := metric_value(snapshot, name)) is None:
        return None
    value = float(exact)
    if abs(value) > LARGEST:
        return None
    return MetricPoint(life, snapshot.step, value, snapshot.live, f"KeepBest:{name}" in life.reasons)


def _best(points: list[MetricPoint], rule: KeepBest | None) -> MetricPoint | None:
    if rule is None:
        return None
    live = {point.life.snapshot.id: point for point in points if point.kept and not point.life.snapshot.failures}
    first = next(iter(best_first((point.life.snapshot for point in live.values()), rule)), None)
    return live[first.id] if first else None
