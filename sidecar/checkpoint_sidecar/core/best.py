"""The definition of "best": the order of snapshots by a metric. Retention, rollbacks and the status share it."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

from checkpoint_sidecar.core.lineage import lineage
from checkpoint_sidecar.core.policy import KeepBest
from checkpoint_sidecar.core.run import Run, Snapshot


def best_first(snapshots: Iterable[Snapshot], rule: KeepBest) -> list[Snapshot]:
    """Sort the snapshots that have the metric of ``rule``, best first; of equal values the newest comes first."""
    scored = [(value, s) for s in snapshots if (value := metric_value(s, rule.metric)) is not None]
    # Negated by copy_negate: arithmetic would round, and overflow on a hostile exponent.
    scored.sort(key=lambda pair: (pair[0] if rule.mode == "Min" else pair[0].copy_negate(), -pair[1].number))
    return [snapshot for _, snapshot in scored]


def best_snapshot(run: Run) -> Snapshot | None:
    """Return the best live snapshot of the lineage by the first rule of ``keepBest``, or None without one."""
    rules = run.policy.retention.keep_best if run.policy.retention else ()
    if not rules:
        return None
    return next(iter(best_first((s for s in lineage(run) if s.live and s.failures == 0), rules[0])), None)


def metric_value(snapshot: Snapshot, metric: str) -> Decimal | None:
    """Return the recorded value, or None when it is absent or not a finite number (NaN is never best)."""
    try:
        value = Decimal(snapshot.commit.metrics.get(metric, "nan"))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
