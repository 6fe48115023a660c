"""The policy of a run in machine units, as it stands in the log.

The user's spelling (``720h``, ``2Ti``) lives in ``core.api``; the operator parses it once and writes this form into
RunConfigured, so that pods need neither a Kubernetes client nor a parser for Go durations.

Units: ``*_seconds`` are seconds, ``*_bytes`` bytes, ``*_steps`` optimizer steps. None means "no such rule".
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from checkpoint_sidecar.core.wire import Positive, PositiveSeconds, Seconds

OverwritePolicy = Literal["Never", "Skip", "Replace"]
RestoreMode = Literal["Latest", "None"]
VerifyLevel = Literal["None", "Sizes", "Checksums"]

NO_RESTORE: Final = "None"
"""The restore mode in which a start ignores the existing snapshots."""

NOT_CHECKED: Final = "None"
"""The level of a snapshot that was not compared with its manifest."""
OnMissing = Literal["Auto", "StartFresh", "Fail"]
MetricMode = Literal["Min", "Max"]
Disposition = Literal["Auto", "Hold", "Retire"]
OnFailure = Literal["Continue", "Raise"]
UnchangedPolicy = Literal["Send", "Copy", "Share"]

MetricName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class SavePolicy(msgspec.Struct, frozen=True, rename="camel"):
    """Schedule of saves and effect of failures. With neither cadence set, only SIGTERM and requests save.

    Attributes:
        on_failure: Effect of a failed automatic save: ``Continue`` continues training and tries again when the next one
            is due, ``Raise`` raises its error in the training loop.
        max_failures: With ``Continue``, the number of successive failures that raise anyway.
        unchanged: Whether tensors that have not changed for some saves are sent again, copied by the store from the
            previous snapshot, or left in the snapshot that stored them, which the new one then names. It helps where
            parameters are frozen; see docs/training.md.
        keyframe_every: With ``Share``, every so many saves one sends everything. A shared file that rots takes the
            snapshots up to there with it.
    """

    every_steps: Positive | None = None
    every_seconds: PositiveSeconds | None = 900.0
    on_termination: bool = True
    on_failure: OnFailure = "Continue"
    max_failures: Positive = 5
    unchanged: UnchangedPolicy = "Send"
    keyframe_every: Annotated[int, msgspec.Meta(ge=1, le=64)] = 20


class KeepBest(msgspec.Struct, frozen=True, rename="camel"):
    """Keep the ``count`` snapshots with the best value of one metric; snapshots without it do not compete."""

    metric: MetricName
    mode: MetricMode = "Min"
    count: Positive = 1


class RetentionPolicy(msgspec.Struct, frozen=True, rename="camel"):
    """Rules for keeping snapshots. See ``core.retention`` for the order of floors, limits and keep rules."""

    keep_last: Positive | None = None
    keep_every_steps: Positive | None = None
    keep_every_seconds: PositiveSeconds | None = None
    keep_best: tuple[KeepBest, ...] = ()
    max_age_seconds: PositiveSeconds | None = None
    max_total_bytes: Positive | None = None
    grace_seconds: Seconds = 3600.0
    dry_run: bool = False


class RestorePolicy(msgspec.Struct, frozen=True, rename="camel"):
    """Settings of a start's restore: its mode, its verification, and its limits on failures and fallbacks."""

    mode: RestoreMode = "Latest"
    verify: VerifyLevel = "Checksums"
    max_failures_per_snapshot: Positive = 2
    max_fallback: Annotated[int, msgspec.Meta(ge=0)] = 3
    on_missing: OnMissing = "Auto"


class Policy(msgspec.Struct, frozen=True, rename="camel"):
    """The whole policy of a run. Pods use the defaults before the first RunConfigured."""

    save: SavePolicy = SavePolicy()
    overwrite: OverwritePolicy = "Never"
    retention: RetentionPolicy | None = None
    restore: RestorePolicy = RestorePolicy()
