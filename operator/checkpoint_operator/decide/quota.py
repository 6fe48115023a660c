"""How the Checkpoints of a namespace share its quota. No I/O.

A quota limits the bytes of the snapshots that can be restored. It never takes a snapshot that must be kept, and no save
waits for it. Of the rest (``RetentionVerdict.spare``) the newest of the whole namespace stay, as far as the quota
reaches, whichever Checkpoint they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from checkpoint_operator.model.observed import Key, Observed
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.selection import Quota
from checkpoint_sidecar.core.sharing import DistinctBytes, distinct_bytes

OTHER_NAMESPACES = "*"


@dataclass(frozen=True, slots=True)
class Demand:
    """What one Checkpoint wants to retain.

    Attributes:
        required: Bytes that no quota takes.
        spare: When each other snapshot was committed, in seconds, and its bytes; newest first.
    """

    required: int = 0
    spare: tuple[tuple[float, int], ...] = ()


def demand_of(observed: Observed) -> Demand | None:
    """Return what a Checkpoint wants to retain, or None when that is not known.

    Snapshots that were retired for the quota count too, so that it decides the same the next time.
    """
    run, now, spec = observed.run, observed.now, observed.checkpoint.spec
    if run is None or now is None or spec is None:
        return None
    if not observed.ours:
        return Demand()
    policy = run.policy.retention
    if policy is None or policy.dry_run or spec.suspend:
        return Demand(required=distinct_bytes([s for s in run.snapshots.values() if s.live]))
    verdict = observed.verdict
    if verdict is None or (verdict.terms.quota and verdict.terms.quota.spare_bytes is not None):
        verdict = judge(run, now=now, terms=replace(observed.terms, quota=None))
    total, beside = DistinctBytes(), verdict.keep.keys() - set(verdict.spare)
    required = sum(total.add(run.snapshots[each]) for each in beside)
    spare = ((run.snapshots[each].committed_at.timestamp(), total.add(run.snapshots[each])) for each in verdict.spare)
    return Demand(required=required, spare=tuple(spare))


def spare_bytes(demands: Mapping[Key, Demand], limit: int) -> dict[Key, int]:
    """Return how many bytes of spare snapshots each may retain, without Checkpoints that may retain all of theirs."""
    room = limit - sum(demand.required for demand in demands.values())
    spares = [(at, key, size) for key, demand in demands.items() for at, size in demand.spare]
    allowed: dict[Key, int] = {}
    cut: set[Key] = set()
    for _, key, size in sorted(spares, key=lambda each: each[0], reverse=True):
        room -= size
        if room < 0:
            cut.add(key)
        else:
            allowed[key] = allowed.get(key, 0) + size
    return {key: allowed.get(key, 0) for key in cut}


class Quotas:
    """The quotas of all namespaces, and what every Checkpoint seen so far demands of them.

    Args:
        limits: Bytes by namespace; under ``*`` for those that are not named. Zero for no limit.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._demands: dict[str, dict[Key, Demand]] = {}
        self._shares: dict[str, dict[Key, Quota]] = {}

    def expect(self, key: Key, retained: int) -> None:
        """Count what the status of a Checkpoint says until more is known about it."""
        if key not in self._demands.get(key.namespace, {}):
            self.note(key, Demand(required=retained))

    def note(self, key: Key, demand: Demand) -> tuple[Key, ...]:
        """Record what a Checkpoint demands now. Returns the others whose share of the quota has changed."""
        demands = self._demands.setdefault(key.namespace, {})
        if not self.limit(key.namespace) or demands.get(key) == demand:
            return ()
        demands[key] = demand
        return self._share_out(key)

    def forget(self, key: Key) -> tuple[Key, ...]:
        """Forget a Checkpoint. Returns the others whose share of the quota has changed."""
        gone = self._demands.get(key.namespace, {}).pop(key, None)
        return self._share_out(key) if gone is not None else ()

    def of(self, key: Key) -> Quota | None:
        """Return what the quota of its namespace means for a Checkpoint; None without one, or before it was noted."""
        return self._shares.get(key.namespace, {}).get(key)

    def limit(self, namespace: str) -> int:
        """Return how many bytes the Checkpoints of a namespace may retain together; 0 for no limit."""
        return self._limits.get(namespace, self._limits.get(OTHER_NAMESPACES, 0))

    def _share_out(self, changed: Key) -> tuple[Key, ...]:
        namespace, limit = changed.namespace, self.limit(changed.namespace)
        demands, before = self._demands[namespace], self._shares.get(namespace, {})
        required = sum(demand.required for demand in demands.values())
        allowed = spare_bytes(demands, limit)
        shares = {key: Quota(limit, required, allowed.get(key)) for key in demands}
        self._shares[namespace] = shares
        return tuple(key for key in shares if key != changed and _differ(before.get(key), shares[key]))


def _differ(one: Quota | None, other: Quota) -> bool:
    # ``required`` is not compared: each commit changes it, and its effects show in the other two fields.
    return one is None or (one.exceeded, one.spare_bytes) != (other.exceeded, other.spare_bytes)
