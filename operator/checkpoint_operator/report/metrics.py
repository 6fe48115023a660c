"""Prometheus metrics. Labels are namespace and name of the Checkpoint; users control nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from checkpoint_operator.model.observed import Key, Observed
from checkpoint_sidecar.core.api import Reason
from checkpoint_sidecar.core.lineage import lineage, quarantined
from checkpoint_sidecar.core.log import (
    RestoreFinished,
    SaveFailed,
    SnapshotCommitted,
    SnapshotPurged,
    SnapshotVerified,
    StoredEntry,
    WarmStartFinished,
)
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.core.sharing import left_bytes

Metric = TypeVar("Metric", Gauge, Counter, Histogram)

_PREFIX = "checkpoint_operator"
_RUN = ("namespace", "checkpoint")
_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)


_OF_STORES = frozenset(
    {
        Reason.ACCESS_DENIED,
        Reason.READ_ONLY,
        Reason.BUCKET_NOT_FOUND,
        Reason.NO_CONDITIONAL_WRITE,
        Reason.STORE_UNAVAILABLE,
        Reason.STORE_TOO_SLOW,
        Reason.PASS_TIMED_OUT,
        Reason.LISTING_TOO_LONG,
        Reason.LOG_TOO_LONG,
        Reason.OBJECT_TOO_LARGE,
        Reason.LOG_UNREADABLE,
    }
)
"""Reasons that concern an object store; the others concern the spec or another owner."""


class Metrics:
    """All metrics of one operator process, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_runs: list[Gauge | Counter | Histogram] = []
        self._seen: set[Key] = set()
        self._latest_time = self._gauge("latest_snapshot_timestamp_seconds", "When the newest snapshot was committed.")
        self._latest_step = self._gauge("latest_snapshot_step", "Step of the newest snapshot.")
        self._snapshots = self._gauge("snapshots", "Snapshots that can be restored.")
        self._retained = self._gauge("retained_bytes", "Size of the snapshots whose data is there.")
        self._quarantined = self._gauge("quarantined_snapshots", "Snapshots that no restore tries again.")
        self._saves_failing = self._gauge("saves_failing", "Whether saves failed since the last commit.")
        self._refused = self._gauge("deletion_refused", "Whether the store refuses to delete.")
        self._over_quota = self._gauge("quota_exceeded", "Whether the namespace must retain more than its quota.")
        self._quota = Gauge(
            f"{_PREFIX}_namespace_quota_bytes", "Quota of a namespace.", ("namespace",), registry=self.registry
        )
        self._attempt = self._gauge("attempt", "Number of the newest attempt.")
        self._started = self._gauge("attempt_started_timestamp_seconds", "When the newest attempt started.")
        self._running = self._gauge("running_pods", "Labelled pods that are pending or running.")
        self._interval = self._gauge("save_interval_seconds", "spec.save.every; absent where only steps count.")
        self._ready = self._gauge("ready", "Whether the Checkpoint is Ready.")
        self._committed = self._counter("snapshots_committed", "Snapshots committed.")
        self._save_failures = self._counter("save_failures", "Failed saves that training reported.")
        self._saved_bytes = self._counter("saved_bytes", "Bytes of the snapshots committed.")
        self._copied_bytes = self._counter("copied_bytes", "Part of the saved bytes that the store copied.")
        self._shared_bytes = self._counter("shared_bytes", "Part of the saved bytes that was in earlier snapshots.")
        self._restores = self._counter("restores", "Restores finished.", "outcome")
        self._verifications = self._counter("verifications", "Comparisons with the manifest.", "level", "outcome")
        self._purged_bytes = self._counter("purged_bytes", "Bytes of the snapshots purged.")
        self._lost_seconds = self._counter("lost_seconds", "Training time that restarts had to repeat.")
        self._lost_steps = self._counter("lost_steps", "Steps that restarts had to repeat.")
        self._store_errors = self._counter("store_errors", "Passes that the object store made fail.", "reason")
        self._save_seconds = self._histogram("save_seconds", "From staging to the last uploaded byte.", *_RUN)
        self._restore_seconds = self._histogram("restore_seconds", "Duration of restores.", *_RUN)
        self._others = self._counter("other_operator_entries", "Log entries that another operator wrote meanwhile.")
        self._lost_races = self._counter("log_lost_races", "Log entries whose number another writer took first.")
        self._unknown_outcomes = self._counter(
            "log_unknown_outcomes", "Requests to append to a log that ended without a usable answer."
        )
        self._reconcile_errors = self._counter("reconcile_errors", "Passes that ended with an error of the operator.")
        self.reconcile_seconds = self._histogram("reconcile_seconds", "Duration of passes over one Checkpoint.")
        self._reported_losses: dict[Key, int] = {}

    async def answer(self, request: web.Request) -> web.Response:
        """Return the answer to a scrape; a thread formats its thousands of lines."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = await asyncio.to_thread(encode, self.registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

    def observe(self, observed: Observed, *, ready: bool) -> None:
        """Set the gauges to the present state."""
        key, run = observed.checkpoint.key, observed.run
        self._seen.add(key)
        self._ready.labels(*_labels(key)).set(ready)
        self._running.labels(*_labels(key)).set(sum(pod.active for pod in observed.cluster.pods))
        if observed.fault is not None and observed.fault.reason in _OF_STORES:
            self._store_errors.labels(*_labels(key), observed.fault.reason).inc()
        if run is None or not observed.ours:
            return
        self._refused.labels(*_labels(key)).set(bool(observed.memory.refusal))
        if observed.quota is not None:
            self._over_quota.labels(*_labels(key)).set(observed.quota.exceeded)
            self._quota.labels(key.namespace).set(observed.quota.limit)
        for level in ("Sizes", "Checksums"):
            self._verifications.labels(*_labels(key), level, "failed")  # a counter that begins at 1 shows no increase
        live = [s for s in run.snapshots.values() if s.live]
        self._snapshots.labels(*_labels(key)).set(len(live))
        valid = (s for s in run.snapshots.values() if s.state is not SnapshotState.REJECTED)
        self._retained.labels(*_labels(key)).set(sum(left_bytes(run, s) for s in valid))
        self._quarantined.labels(*_labels(key)).set(sum(quarantined(run, s) for s in live))
        self._attempt.labels(*_labels(key)).set(run.highest_attempt)
        self._save_failures.labels(*_labels(key))  # a counter that begins at 1 shows no increase
        self._saves_failing.labels(*_labels(key)).set(run.attempt is not None and run.attempt.save_failure is not None)
        if run.attempt is not None:
            self._started.labels(*_labels(key)).set(run.attempt.started_at.timestamp())
        if run.policy.save.every_seconds is None:
            self._interval.remove_by_labels(_named(key))
        else:
            self._interval.labels(*_labels(key)).set(run.policy.save.every_seconds)
        newest = next((s for s in lineage(run) if s.live), None)
        if newest is not None:
            self._latest_time.labels(*_labels(key)).set(newest.committed_at.timestamp())
            self._latest_step.labels(*_labels(key)).set(newest.step)

    def count(self, key: Key, entries: Iterable[StoredEntry]) -> None:
        """Count new log entries."""
        for entry in entries:
            body = entry.body
            if isinstance(body, SnapshotCommitted):
                self._committed.labels(*_labels(key)).inc()
                self._saved_bytes.labels(*_labels(key)).inc(body.bytes)
                self._copied_bytes.labels(*_labels(key)).inc(body.copied_bytes)
                self._shared_bytes.labels(*_labels(key)).inc(body.shared_bytes)
                self._save_seconds.labels(*_labels(key)).observe(body.seconds)
            elif isinstance(body, SaveFailed):
                self._save_failures.labels(*_labels(key)).inc(body.failures)
            elif isinstance(body, RestoreFinished | WarmStartFinished):
                self._restores.labels(*_labels(key), "restored" if body.restored else "failed").inc()
                self._restore_seconds.labels(*_labels(key)).observe(body.seconds)
            elif isinstance(body, SnapshotVerified):
                self._verifications.labels(*_labels(key), body.level, "passed" if body.passed else "failed").inc()
            elif isinstance(body, SnapshotPurged):
                self._purged_bytes.labels(*_labels(key)).inc(body.bytes)

    def count_loss(self, key: Key, *, attempt: int, steps: int, seconds: int) -> None:
        """Count the loss of one restart, once."""
        if self._reported_losses.get(key, 0) < attempt:
            self._reported_losses[key] = attempt
            self._lost_steps.labels(*_labels(key)).inc(steps)
            self._lost_seconds.labels(*_labels(key)).inc(seconds)

    def count_other_operator(self, key: Key, entries: int) -> None:
        """Count entries that another operator appended to the log while this one works on it."""
        self._others.labels(*_labels(key)).inc(entries)

    def count_appends(self, key: Key, *, lost_races: int, unknown_outcomes: int) -> None:
        """Count what the operator's appends to the log met since they were counted last."""
        self._lost_races.labels(*_labels(key)).inc(lost_races)
        self._unknown_outcomes.labels(*_labels(key)).inc(unknown_outcomes)

    def count_error(self, key: Key) -> None:
        """Count a pass that ended early, because of an unexpected answer of the API server or a bug."""
        self._reconcile_errors.labels(*_labels(key)).inc()

    def forget(self, key: Key) -> None:
        """Remove all metrics of a deleted Checkpoint, and those of the namespace's quota with its last Checkpoint."""
        self._reported_losses.pop(key, None)
        for metric in self._of_runs:
            metric.remove_by_labels(_named(key))
        self._seen.discard(key)
        if not any(other.namespace == key.namespace for other in self._seen):
            self._quota.remove_by_labels({"namespace": key.namespace})

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._of_run(Gauge(f"{_PREFIX}_{name}", text, _RUN, registry=self.registry))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._of_run(Counter(f"{_PREFIX}_{name}", text, (*_RUN, *labels), registry=self.registry))

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        made = Histogram(f"{_PREFIX}_{name}", text, labels, registry=self.registry, buckets=_SECONDS)
        return self._of_run(made) if labels else made

    def _of_run(self, metric: Metric) -> Metric:
        self._of_runs.append(metric)
        return metric


def _labels(key: Key) -> tuple[str, str]:
    return key.namespace, key.name


def _named(key: Key) -> dict[str, str]:
    return dict(zip(_RUN, _labels(key), strict=True))
