"""Hypothesis strategies for the core: valid entries, and stories made of them in which anything may happen."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from hypothesis import strategies as st

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.commits import with_shares
from checkpoint_sidecar.core.log import (
    MAX_TEXT,
    AttemptFenced,
    AttemptStarted,
    Body,
    DispositionSet,
    EvictionNoticed,
    Owner,
    PodIdentity,
    PurgeStarted,
    QuarantineReleased,
    RestoreFinished,
    RestoreStarted,
    RollbackRequested,
    RunAdopted,
    RunClaimed,
    RunConfigured,
    SaveFailed,
    SaveRequested,
    SnapshotCommitted,
    SnapshotCommittedSharing,
    SnapshotPurged,
    SnapshotReinstated,
    SnapshotRetired,
    SnapshotVerified,
    WarmStartChosen,
    WarmStartFinished,
)
from checkpoint_sidecar.core.overwrite import base_of, existing_save, may_begin_anew
from checkpoint_sidecar.core.policy import KeepBest, Policy, RestorePolicy, RetentionPolicy, SavePolicy
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.core.shared_files import SharedFiles, runs_of
from checkpoint_sidecar.core.wire import MAX_SECONDS
from support.builders import OTHER_OWNER, OWNER, POD, History, nonce_of

# Few of each, so that entries hit each other.
STEPS = st.integers(0, 4).map(lambda n: 100 * n)
ATTEMPTS = st.integers(1, 4)
REQUESTS = st.sampled_from(["", "request-1", "request-2"])
SNAPSHOTS = st.builds(
    lambda step, attempt, nonce: layout.snapshot_id(step, attempt, nonce_of(nonce)), STEPS, ATTEMPTS, st.integers(0, 2)
)
OPTIONAL_SNAPSHOTS = st.one_of(st.just(""), SNAPSHOTS)
EVIDENCE = st.sampled_from(["None", "ChecksumMismatch", "SizeMismatch", "MissingObject", "ManifestMismatch"])
LEVELS = st.sampled_from(["None", "Sizes", "Checksums"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_TEXT)
DURATIONS = st.floats(0, MAX_SECONDS, allow_nan=False)
DIGESTS = st.integers(0, 2**256 - 1).map(lambda n: f"{n:064x}")
METRICS = st.dictionaries(
    st.sampled_from(["loss", "accuracy"]),
    st.sampled_from(["0.5", "0.25", "1", "-3e2", "nan", "inf", "1e999999999", "-1e999999999", "no number"]),
    max_size=2,
)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def commits(draw: st.DrawFn, /, **fixed: Any) -> SnapshotCommitted:
    """A well-formed commit; whether it is legal depends on the run it meets."""
    step, attempt, nonce = draw(STEPS), draw(ATTEMPTS), nonce_of(draw(st.integers(0, 2)))
    commit = SnapshotCommitted(
        snapshot=layout.snapshot_id(step, attempt, nonce),
        step=step,
        attempt=attempt,
        path=layout.SaveFolder(step, attempt, nonce).path,
        manifest_digest=draw(DIGESTS),
        bytes=draw(st.integers(0, 10_000)),
        files=draw(st.integers(1, 9)),
        world_size=draw(st.integers(1, 8)),
        parent=draw(OPTIONAL_SNAPSHOTS),
        replaces=draw(OPTIONAL_SNAPSHOTS),
        restore_request=draw(REQUESTS),
        save_request=draw(REQUESTS),
        trigger=draw(st.sampled_from(["Schedule", "Request", "Termination", "Eviction", "Manual", "Final"])),
        metrics=draw(METRICS),
        seconds=draw(DURATIONS),
        blocked_seconds=draw(DURATIONS),
    )
    return msgspec.structs.replace(commit, **fixed)


SETTLED = st.builds(layout.settled_name, st.integers(0, 3), st.integers(0, 4))
SHARES = st.dictionaries(
    SNAPSHOTS, st.dictionaries(SETTLED, st.integers(0, 500), min_size=1, max_size=6), min_size=1, max_size=3
).map(lambda found: tuple(SharedFiles.of(*each) for each in found.items()))

RETENTION = st.builds(
    RetentionPolicy,
    keep_last=optional(st.integers(1, 4)),
    keep_every_steps=optional(st.integers(1, 400)),
    keep_every_seconds=optional(st.floats(1, 1e4)),
    keep_best=st.lists(
        st.builds(
            KeepBest,
            metric=st.sampled_from(["loss", "accuracy"]),
            mode=st.sampled_from(["Min", "Max"]),
            count=st.integers(1, 2),
        ),
        max_size=2,
    ).map(tuple),
    max_age_seconds=optional(st.floats(1, 1e4)),
    max_total_bytes=optional(st.integers(1, 20_000)),
    grace_seconds=st.floats(0, 1e4),
)
POLICIES = st.builds(
    Policy,
    save=st.builds(SavePolicy, every_steps=optional(st.integers(1, 9)), every_seconds=optional(st.floats(1, 9))),
    overwrite=st.sampled_from(["Never", "Skip", "Replace"]),
    retention=optional(RETENTION),
    restore=st.builds(
        RestorePolicy,
        mode=st.sampled_from(["Latest", "None"]),
        verify=LEVELS,
        max_failures_per_snapshot=st.integers(1, 3),
        on_missing=st.sampled_from(["Auto", "StartFresh", "Fail"]),
    ),
)
OWNERS = st.sampled_from([OWNER, OTHER_OWNER, Owner("local", "local", "run")])
PODS = st.builds(PodIdentity, name=st.sampled_from(["llama-0", "llama-1"]), uid=st.sampled_from(["a", "b"]))
UIDS = st.sampled_from(["object-1", "object-2"])

BODIES: dict[type, st.SearchStrategy[Any]] = {
    RunClaimed: st.builds(RunClaimed, OWNERS),
    RunAdopted: st.builds(RunAdopted, OWNERS, OWNERS),
    RunConfigured: st.builds(RunConfigured, UIDS, st.integers(1, 4), POLICIES),
    RollbackRequested: st.builds(RollbackRequested, st.sampled_from(["request-1", "request-2"]), SNAPSHOTS),
    AttemptStarted: st.builds(
        AttemptStarted,
        attempt=ATTEMPTS,
        world_size=st.integers(1, 8),
        restore_request=REQUESTS,
        candidate=OPTIONAL_SNAPSHOTS,
        pods=st.lists(PODS, max_size=16).map(tuple),
    ),
    RestoreStarted: st.builds(RestoreStarted, ATTEMPTS, SNAPSHOTS),
    RestoreFinished: st.builds(
        RestoreFinished,
        attempt=ATTEMPTS,
        snapshot=SNAPSHOTS,
        restored=st.booleans(),
        evidence=EVIDENCE,
        message=TEXTS,
        verified=LEVELS,
        seconds=DURATIONS,
        bytes=st.integers(0, 2**60),
        compared_bytes=st.one_of(st.just(msgspec.UNSET), st.integers(0, 2**60)),
        missing=st.lists(TEXTS, max_size=2).map(tuple),
        unused=st.lists(TEXTS, max_size=2).map(tuple),
    ),
    WarmStartChosen: st.builds(
        WarmStartChosen, TEXTS, st.just("s3://other/run"), SNAPSHOTS, st.integers(0, 99), st.sampled_from(["", "model"])
    ),
    WarmStartFinished: st.builds(
        WarmStartFinished,
        attempt=ATTEMPTS,
        url=st.just("s3://other/run"),
        snapshot=SNAPSHOTS,
        restored=st.booleans(),
        evidence=EVIDENCE,
        message=TEXTS,
    ),
    SnapshotCommitted: commits(),
    SnapshotCommittedSharing: st.builds(with_shares, commits(), SHARES),
    SnapshotVerified: st.builds(SnapshotVerified, SNAPSHOTS, LEVELS, st.booleans(), EVIDENCE, TEXTS),
    SaveFailed: st.builds(SaveFailed, ATTEMPTS, st.integers(0, 99), st.integers(1, 9), TEXTS),
    SaveRequested: st.builds(SaveRequested, st.sampled_from(["save-1", "save-2"]), ATTEMPTS),
    EvictionNoticed: st.builds(EvictionNoticed, ATTEMPTS, st.just(POD), TEXTS),
    AttemptFenced: st.builds(AttemptFenced, ATTEMPTS),
    DispositionSet: st.builds(DispositionSet, SNAPSHOTS, st.sampled_from(["Auto", "Hold", "Retire"])),
    QuarantineReleased: st.builds(QuarantineReleased, SNAPSHOTS, st.sampled_from(["release-1", "release-2"])),
    SnapshotRetired: st.builds(SnapshotRetired, SNAPSHOTS, st.lists(TEXTS, max_size=8).map(tuple)),
    SnapshotReinstated: st.builds(SnapshotReinstated, SNAPSHOTS, optional(ATTEMPTS)),
    PurgeStarted: st.builds(PurgeStarted, SNAPSHOTS, st.just("") | st.sets(SETTLED).map(runs_of)),
    SnapshotPurged: st.builds(SnapshotPurged, SNAPSHOTS, st.integers(0, 2**60)),
}
"""A strategy for each kind of entry."""

ANY_BODY: st.SearchStrategy[Body] = st.one_of(*BODIES.values())
NOW = st.floats(-1e6, 1e8).filter(math.isfinite)
"""Seconds after the beginning of a history; the clock may also have jumped back."""


# Stories: histories in which every entry is legal, and anything legal may happen.

_MOVES = st.lists(
    st.tuples(
        st.sampled_from(
            ["save"] * 5
            + ["verify"] * 4
            + ["start", "start", "replace", "damage", "rollback", "wait", "hold", "discard", "release"]
            + ["retire", "retire", "reinstate", "purge", "purge", "finish purge"]
        ),
        st.integers(0, 50),
    ),
    min_size=8,
    max_size=30,
)


def _opening(history: History, kind: str) -> None:
    """How a story begins: most states worth testing need several saves, and some a rollback."""
    if kind != "empty":
        history.committed(1, 2, 3, 4).verified(3)
    if kind == "rolled back":
        history.rollback(2, request="opening").started().restored().committed(5, 6).verified(6)


@st.composite
def stories(draw: st.DrawFn, retention: st.SearchStrategy[Any] = RETENTION) -> History:
    """A run with a retention policy, in any state it can get into; the operator of the story retires at random."""
    history = History().configured(overwrite="Replace", retention=draw(retention)).started()
    _opening(history, draw(st.sampled_from(["empty", "saved", "rolled back"])))
    step = 10
    for move, number in draw(_MOVES):
        ids = list(history.run.snapshots)
        which = ids[number % len(ids)] if ids else ""
        state = history.run.snapshots[which].state if ids else None
        if move == "save":
            step += 10 * (1 + number % 4)
            _save(history, step, draw(st.integers(0, 2000)), draw(METRICS))
        elif move == "wait":
            history.wait(minutes=number)
        elif not ids:
            continue
        elif move == "replace":
            _save(history, history.snapshot(which).step, 1000, {})
        elif move == "start":
            history.started()
            if history.run.attempts[history.run.highest_attempt].in_use:
                history.restored()
        elif move == "verify":
            history.verified(which)
        elif move == "damage":
            history.found_damaged(which)
        elif move == "hold":
            history.disposed(which, "Hold")
        elif move == "discard":
            history.disposed(which, "Retire")
        elif move == "release":
            history.disposed(which, "Auto")
        elif move == "rollback" and state in (SnapshotState.LIVE, SnapshotState.RETIRED):
            history.rollback(which, request=f"rollback-{len(history.entries)}")
        elif move == "retire":
            history.retired(which)
        elif move == "reinstate":
            history.reinstated(which)
        elif move == "purge" and state is SnapshotState.RETIRED:
            history.purge_started(which)
        elif move == "finish purge" and state is SnapshotState.PURGING:
            history.purged(which)
    return history


def _save(history: History, step: int, size: int, metrics: dict[str, str]) -> None:
    """What the library would commit for this step, if anything."""
    run = history.run
    attempt = run.attempts[run.highest_attempt]
    if not base_of(attempt) and not may_begin_anew(run, attempt):
        return
    existing = existing_save(run, base_of(attempt), step)
    history.committed(step, bytes=size, metrics=metrics, replaces=existing.id if existing else "")
