"""Builders of the operator's observations: a Checkpoint, its pods and its mirrored snapshots beside a run's history."""

from __future__ import annotations

import datetime as dt
from dataclasses import fields, replace
from typing import Any

import msgspec

from checkpoint_operator.gather.spec_policy import policy_of
from checkpoint_operator.model.observed import Checkpoint, Cluster, Key, Mirror, Observed, Pod, Remembered
from checkpoint_operator.report import resources
from checkpoint_sidecar.core.api import CheckpointSpec
from checkpoint_sidecar.core.pointers import published_steps
from checkpoint_sidecar.core.policy import Disposition, RetentionPolicy
from support.builders import OBJECT_UID, OWNER, History

KEY = Key(OWNER.namespace, OWNER.name)
CREATED = "2026-01-01T00:00:00Z"


def spec_of(**fields: Any) -> CheckpointSpec:
    """A spec as the API server admits it, in the user's spelling: ``spec_of(retention={"keepLast": 2})``."""
    return msgspec.convert({"storage": {"url": "s3://bucket/run"}, **fields}, CheckpointSpec)


def observed(
    history: History | None, *, generation: int | None = None, status: dict[str, Any] | None = None, **spec: Any
) -> Observed:
    """What a pass sees, right after the last entry of the history; None for a log that could not be read."""
    run = history.run if history else None
    if generation is None:
        generation = run.configured[1] if run and run.configured else 1
    wanted = spec_of(**spec)
    return Observed(
        owner=OWNER,
        checkpoint=Checkpoint(KEY, OBJECT_UID, generation, CREATED, wanted, status or {}),
        wall=history.now if history else dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        policy=policy_of(wanted),
        run=run,
        now=history.now if history else None,
    )


def changed(seen: Observed, **values: Any) -> Observed:
    """The same with other values, of which some may be fields of ``Cluster`` or of ``Remembered``."""
    around = {field.name: values.pop(field.name) for field in fields(Cluster) if field.name in values}
    remembered = {field.name: values.pop(field.name) for field in fields(Remembered) if field.name in values}
    cluster, memory = replace(seen.cluster, **around), replace(seen.memory, **remembered)
    return replace(seen, **{"cluster": cluster, "memory": memory, **values})


def saved(*steps: int, retention: RetentionPolicy | None = None) -> History:
    """A configured run with verified commits."""
    return History().configured(retention=retention).started().committed(*steps).verified(*steps)


def quiet(seen: Observed) -> Observed:
    """With the stock pointers known to be right, so that only the rest of the plan shows."""
    return changed(seen, pointers=published_steps(seen.run) if seen.run else {})


def later(seen: Observed, **duration: float) -> Observed:
    """The same, some time later by every clock."""
    passed = dt.timedelta(**duration)
    return replace(seen, now=seen.now + passed if seen.now else None, wall=seen.wall + passed)


def pod(
    name: str = "llama-0",
    uid: str = "11111111-0000-0000-0000-000000000000",
    *,
    phase: str = "Running",
    leaving: str = "",
    started: dt.datetime | None = None,
    created: dt.datetime | None = None,
    grace_seconds: float | None = None,
) -> Pod:
    """A labelled pod; by default the one of ``builders.POD``."""
    start = started or dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return Pod(name, uid, phase, created or start, start, leaving, grace_seconds)


def mirror(
    history: History, which: int | str, *, disposition: Disposition = "Auto", status: dict[str, Any] | None = None
) -> Mirror:
    """The CheckpointSnapshot object of a snapshot."""
    snapshot = history.id(which)
    name = resources.mirror_name(KEY.name, snapshot)
    return Mirror(name, snapshot, 1, disposition, status or {}, uid=f"uid of {name}", controller=OBJECT_UID)
