"""From the user's spelling to the policy in the log."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from checkpoint_operator.gather.spec_policy import policy_of
from checkpoint_sidecar.core.policy import KeepBest, Policy, RestorePolicy, RetentionPolicy, SavePolicy
from support.observations import spec_of


def test_the_defaults_of_the_api_are_the_defaults_of_the_library() -> None:
    assert policy_of(spec_of()) == Policy()


def test_every_field_arrives_in_machine_units() -> None:
    spec = spec_of(
        save={
            "everySteps": 500,
            "every": "1h30m",
            "onTermination": False,
            "onFailure": "Raise",
            "maxFailures": 3,
            "unchanged": "Share",
            "keyframeEvery": 7,
        },
        overwritePolicy="Replace",
        retention={
            "keepLast": 3,
            "keepEverySteps": 5000,
            "keepEvery": "24h",
            "keepBest": [{"metric": "loss"}, {"metric": "accuracy", "mode": "Max", "count": 2}],
            "maxAge": "720h",
            "maxTotalSize": "2Ti",
            "gracePeriod": "500ms",
            "dryRun": True,
        },
        restore={
            "mode": "None",
            "verify": "Sizes",
            "maxFailuresPerSnapshot": 1,
            "maxFallback": 0,
            "onMissing": "Fail",
        },
    )
    assert policy_of(spec) == Policy(
        save=SavePolicy(
            every_steps=500,
            every_seconds=5400.0,
            on_termination=False,
            on_failure="Raise",
            max_failures=3,
            unchanged="Share",
            keyframe_every=7,
        ),
        overwrite="Replace",
        retention=RetentionPolicy(
            keep_last=3,
            keep_every_steps=5000,
            keep_every_seconds=86400.0,
            keep_best=(KeepBest("loss"), KeepBest("accuracy", "Max", 2)),
            max_age_seconds=720 * 3600.0,
            max_total_bytes=2 * 1024**4,
            grace_seconds=0.5,
            dry_run=True,
        ),
        restore=RestorePolicy(
            mode="None", verify="Sizes", max_failures_per_snapshot=1, max_fallback=0, on_missing="Fail"
        ),
    )


def test_zero_switches_the_time_cadence_off() -> None:
    assert policy_of(spec_of(save={"every": "0s"})).save.every_seconds is None


def test_what_is_written_into_the_log_can_be_read_back() -> None:
    policy = policy_of(spec_of(save={"every": "0s"}, retention={"keepLast": 1}))
    assert msgspec.json.decode(msgspec.json.encode(policy), type=Policy) == policy


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"save": {"every": "30d"}}, "spec.save.every"),
        ({"retention": {"keepEvery": "1 day"}}, "spec.retention.keepEvery"),
        ({"retention": {"maxAge": ""}}, "spec.retention.maxAge"),
        ({"retention": {"gracePeriod": "-1h"}}, "spec.retention.gracePeriod"),
        ({"retention": {"maxTotalSize": "2TB"}}, "spec.retention.maxTotalSize"),
    ],
)
def test_a_spelling_that_slipped_through_the_schema_names_its_field(
    spec: dict[str, dict[str, str]], field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        policy_of(spec_of(**spec))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"retention": {"keepLast": 0}}, "retention.keepLast"),
        ({"retention": {"keepBest": [{"metric": "m" * 65}]}}, r"retention.keepBest\[0\].metric"),
        ({"restore": {"maxFailuresPerSnapshot": 0}}, "restore.maxFailuresPerSnapshot"),
        ({"save": {"everySteps": 2**63}}, "save.everySteps"),
    ],
)
def test_a_number_that_slipped_through_the_schema_is_a_fault_of_the_spec_and_not_of_the_log(
    spec: dict[str, dict[str, Any]], field: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        policy_of(spec_of(**spec))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", ["100Ei", "1e999999999"])
def test_a_size_beyond_all_stores_is_no_limit(size: str) -> None:
    policy = policy_of(spec_of(retention={"maxTotalSize": size}))
    assert policy.retention is not None
    assert policy.retention.max_total_bytes == 2**63 - 1
