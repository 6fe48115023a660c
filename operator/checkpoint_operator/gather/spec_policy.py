"""Translates a spec into the policy in the log. The only module that parses durations and quantities."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from kubernetes.utils.duration import parse_duration
from kubernetes.utils.quantity import parse_quantity

from checkpoint_sidecar.core import api
from checkpoint_sidecar.core.policy import KeepBest, Policy, RestorePolicy, RetentionPolicy, SavePolicy
from checkpoint_sidecar.core.wire import MAX_INT64


def policy_of(spec: api.CheckpointSpec) -> Policy:
    """Return the policy that a spec asks for.

    Raises:
        ValueError: A duration or quantity is invalid; the message names the field.
        msgspec.ValidationError: The schema does not allow a value; an older CRD stored it.
    """
    policy = Policy(
        save=SavePolicy(
            every_steps=spec.save.every_steps,
            every_seconds=_seconds("save.every", spec.save.every) or None,
            on_termination=spec.save.on_termination,
            on_failure=spec.save.on_failure,
            max_failures=spec.save.max_failures,
            unchanged=spec.save.unchanged,
            keyframe_every=spec.save.keyframe_every,
        ),
        overwrite=spec.overwrite_policy,
        retention=_retention(spec.retention) if spec.retention else None,
        restore=RestorePolicy(
            mode=spec.restore.mode,
            verify=spec.restore.verify,
            max_failures_per_snapshot=spec.restore.max_failures_per_snapshot,
            max_fallback=spec.restore.max_fallback,
            on_missing=spec.restore.on_missing,
        ),
    )
    # Constructors do not check bounds: what is out of them is found here, where the spec can be named as the cause.
    return msgspec.convert(msgspec.to_builtins(policy), Policy)


def _retention(retention: api.Retention) -> RetentionPolicy:
    return RetentionPolicy(
        keep_last=retention.keep_last,
        keep_every_steps=retention.keep_every_steps,
        keep_every_seconds=_optional_seconds("retention.keepEvery", retention.keep_every),
        keep_best=tuple(KeepBest(rule.metric, rule.mode, rule.count) for rule in retention.keep_best),
        max_age_seconds=_optional_seconds("retention.maxAge", retention.max_age),
        max_total_bytes=_bytes("retention.maxTotalSize", retention.max_total_size),
        grace_seconds=_seconds("retention.gracePeriod", retention.grace_period),
        dry_run=retention.dry_run,
    )


def _seconds(field: str, duration: api.Duration) -> float:
    try:
        return float(parse_duration(duration).total_seconds())
    except ValueError as error:
        raise ValueError(f"spec.{field}: {duration!r} is not a duration such as 90s, 15m or 720h") from error


def _optional_seconds(field: str, duration: api.Duration | None) -> float | None:
    return None if duration is None else _seconds(field, duration)


def _bytes(field: str, quantity: api.Quantity | None) -> int | None:
    if quantity is None:
        return None
    try:
        # Limited before it becomes an integer: 1e99999999 is a quantity, and has as many digits.
        return int(min(parse_quantity(quantity), Decimal(MAX_INT64)))
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"spec.{field}: {quantity!r} is not a quantity such as 500Gi or 2Ti") from error
