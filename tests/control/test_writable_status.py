"""Whatever the log of a run says, the API server accepts the status that follows from it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import yaml
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_operator.decide.mirrors import mirror_actions
from checkpoint_operator.model.actions import CreateMirror
from checkpoint_operator.model.observed import RunProgress
from checkpoint_operator.report.status import status_of
from checkpoint_sidecar.core.log import MAX_TEXT, RestoreFinished
from checkpoint_sidecar.core.policy import KeepBest, RetentionPolicy
from checkpoint_sidecar.core.wire import MAX_INT32, MAX_INT64, MAX_SECONDS
from support.builders import History
from support.observations import changed, observed

CRDS = Path(__file__).parents[2] / "crds"
BOUNDS = {"int32": 2**31, "int64": 2**63}

SIZES = st.sampled_from([0, MAX_INT64])
SECONDS = st.sampled_from([0.0, MAX_SECONDS])
VALUES = st.sampled_from(["0.0000001", "12345678" * 7 + "12e-63", "9" * 64, "nan", "x" * 64])


def schema(plural: str, part: str) -> dict[str, Any]:
    crd = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    found: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part]
    return found


STATUS, MIRROR, MIRROR_STATUS = (
    schema("checkpoints", "status"),
    *(schema("checkpointsnapshots", part) for part in ("spec", "status")),
)


def check_writable(value: object, expected: dict[str, Any]) -> None:
    """Raise unless the API server would store the value: JSON Schema, and the ranges that its formats mean."""
    jsonschema.validate(value, expected)
    _check_integers(value, expected)


def _check_integers(value: Any, expected: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for name, each in value.items():
            _check_integers(
                each, expected.get("properties", {}).get(name) or expected.get("additionalProperties") or {}
            )
    elif isinstance(value, list):
        for each in value:
            _check_integers(each, expected["items"])
    elif expected.get("type") == "integer":
        bound = BOUNDS[expected["format"]]
        assert -bound <= value < bound, f"{value} is no {expected['format']}"


@given(
    sizes=st.tuples(SIZES, SIZES, SIZES),
    step=st.sampled_from([0, MAX_INT64]),
    seconds=SECONDS,
    text=st.sampled_from(["", "x" * MAX_TEXT, "\U0001f600" * MAX_TEXT]),
    value=VALUES,
    metric=st.sampled_from(["loss", "m" * 64]),
    retired=st.booleans(),
)
def test_the_status_of_any_log_can_be_written(
    sizes: tuple[int, int, int], step: int, seconds: float, text: str, value: str, metric: str, retired: bool
) -> None:
    policy = RetentionPolicy(keep_last=1, keep_best=(KeepBest(metric),), grace_seconds=seconds)
    history = History().configured(retention=policy).started()
    for number, size in enumerate(sizes):
        history.committed(
            min(step + number, MAX_INT64 - len(sizes) + number),
            bytes=size,
            files=MAX_INT64,
            world_size=MAX_INT32,
            metrics={metric: value},
            seconds=seconds,
        )
    newest, oldest = history.run.newest or "", next(iter(history.run.snapshots))
    history.verified(newest).evicted(text).started()
    finished = RestoreFinished(2, newest, True, "None", text, "Checksums", seconds, MAX_INT64)
    history.append(finished)
    damaged = msgspec.structs.replace(finished, snapshot=oldest, restored=False, evidence="ChecksumMismatch")
    history.append(damaged).append(damaged)
    if retired:
        history.retired(oldest, reasons=(text,) * 8)
    seen = observed(history, retention={"keepLast": 1})
    progress = RunProgress(1, MAX_INT64, history.now + dt.timedelta(days=365 * 6000))
    seen = changed(seen, progress={1: progress})

    check_writable(status_of(seen), STATUS)
    created = [action for action in mirror_actions(seen) if isinstance(action, CreateMirror)]
    assert len(created) == len(sizes)
    for action in created:
        check_writable(action.body["spec"], MIRROR)
        check_writable(action.status, MIRROR_STATUS)
