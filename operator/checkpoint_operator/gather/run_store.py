"""A run's store, opened for its Checkpoint: the identities that may be used, the log and the store's clock.

Everything here blocks, so it runs in threads.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from checkpoint_operator.fairness.budget import ACTION_SECONDS, Meter, MeteredStore, metered
from checkpoint_operator.fairness.rate_limit import RateLimit
from checkpoint_operator.gather.endpoint_rules import Pattern
from checkpoint_operator.model.observed import Checkpoint, Key, RunProgress, StoreFault
from checkpoint_operator.model.outcome import BudgetError
from checkpoint_operator.report.events import MAX_REPORTED
from checkpoint_sidecar.conformance.probe import probe
from checkpoint_sidecar.core import layout, orphans
from checkpoint_sidecar.core.api import Reason, Storage
from checkpoint_sidecar.core.attempt import check_log
from checkpoint_sidecar.core.belongings import traces
from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    CheckpointError,
    ConfigurationError,
    DeletionRefusedError,
    IncompatibleSnapshotError,
    LogError,
    LogMissingError,
    LogReplacedError,
    NoConditionalWriteError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.location import check_url
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.runs.clock import StoreClock, read_store_clock
from checkpoint_sidecar.runs.heartbeat import read_heartbeat
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.runs.marker import telling_keys
from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings
from checkpoint_sidecar.store.common.calls import Timeouts, batches
from checkpoint_sidecar.store.opening import open_store

EVERY_NAMESPACE = "*"
NAMESPACE_IN_PREFIX = "{namespace}"

KEYS_PER_BATCH = 500
PROVEN_SECONDS = 3600.0
"""How long a passed probe counts; each takes some twenty requests."""

OVER_BUDGET_SECONDS = 600.0
"""Delay before the next try at a run that costs too much: each try costs as much again."""

APPEND_TIMEOUT_SECONDS = 30.0
# A pass that gives up is repeated anyway; one that waits keeps a thread from the Checkpoints whose stores answer.
TIMEOUTS = Timeouts(deadline_seconds=10.0, answer_seconds=10.0, body_seconds=60.0)

_FAULTS: tuple[tuple[type[CheckpointError], Reason, bool], ...] = (
    (AccessDeniedError, Reason.ACCESS_DENIED, False),
    (BucketNotFoundError, Reason.BUCKET_NOT_FOUND, False),
    (NoConditionalWriteError, Reason.NO_CONDITIONAL_WRITE, True),
    (StoreError, Reason.STORE_UNAVAILABLE, False),
    (LogError, Reason.LOG_UNREADABLE, True),
    (LogMissingError, Reason.LOG_MISSING, True),
    (IncompatibleSnapshotError, Reason.UPGRADE_REQUIRED, True),
    (ConfigurationError, Reason.INVALID_CREDENTIALS, False),
)


_NO_ANSWER = (StoreError, UnknownOutcomeError)
"""Errors that an adapter raises if a store does not answer in time. Their subclasses are answers."""

logger = logging.getLogger(__name__)


class StorageFaultError(Exception):
    """The store must not or cannot be opened as the spec says."""

    def __init__(self, fault: StoreFault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of the operator's administrator.

    Attributes:
        ambient: ``(namespace, URL prefix)`` pairs that may be read and written with the operator's own identity.
            The namespace ``*`` is every one, each with its own name for ``{namespace}`` in the prefix.
        file_urls: Whether ``file://`` is allowed at all.
        endpoints: Which ``spec.storage.endpoint`` are allowed; empty for all but those that are never object stores.
        api_server: Address of the cluster's own API, or empty outside a cluster.
    """

    ambient: tuple[tuple[str, str], ...] = ()
    file_urls: bool = False
    endpoints: tuple[Pattern, ...] = ()
    api_server: str = ""

    def allows_ambient(self, namespace: str, url: str) -> bool:
        prefixes = (
            prefix.replace(NAMESPACE_IN_PREFIX, namespace)
            for allowed, prefix in self.ambient
            if allowed in (namespace, EVERY_NAMESPACE)
        )
        return any(url == prefix or url.startswith(prefix + "/") for prefix in prefixes)


def fault_from(error: CheckpointError) -> StoreFault:
    """Translate an error of the library into a fault of the Checkpoint."""
    if isinstance(error, BudgetError):
        too_slow = error.reason is Reason.STORE_TOO_SLOW
        return StoreFault(
            error.reason,
            str(error),
            stalled=not too_slow,
            unreachable="it was too slow" if too_slow else "",
            retry_seconds=None if too_slow else OVER_BUDGET_SECONDS,
        )
    for kind, reason, stalled in _FAULTS:
        if isinstance(error, kind):
            return StoreFault(reason, str(error), stalled, unreachable=error.cause if type(error) in _NO_ANSWER else "")
    return StoreFault(Reason.STORE_UNAVAILABLE, str(error))


def timed_out(settings: StoreSettings) -> StoreFault:
    """The fault of a request that was abandoned because it did not return in time."""
    where = settings.endpoint or settings.url
    return StoreFault(Reason.PASS_TIMED_OUT, f"A request to {where} did not return in time. The operator tries again.")


def settings_for(key: Key, storage: Storage, secret: Mapping[str, str] | None, rules: Rules) -> StoreSettings:
    """Return how to open the store.

    Args:
        secret: The named Secret's values, or None when the spec names none.

    Raises:
        StorageFaultError: The spec asks for something impossible or something that is not allowed.
    """
    try:
        url = check_url(storage.url)
    except ConfigurationError as error:
        raise StorageFaultError(StoreFault(Reason.INVALID_SPEC, str(error), stalled=True)) from error
    if url.startswith("file:"):
        if not rules.file_urls:
            message = "file:// URLs are not allowed by the operator's configuration. Use s3://, gs:// or az://."
            raise StorageFaultError(StoreFault(Reason.FILE_URL_NOT_ALLOWED, message, stalled=True))
        return StoreSettings(url)
    if secret is None:
        _check_ambient(key, storage, url, rules)
    return StoreSettings(
        url=url,
        endpoint=storage.endpoint,
        region=storage.region,
        addressing_style=storage.addressing_style,
        credentials=AMBIENT if secret is None else Credentials.of(secret),
        server_side_encryption=storage.server_side_encryption or "",
        kms_key_id=storage.kms_key_id or "",
        requester_pays=bool(storage.requester_pays),
        tags=tuple(sorted(storage.tags.items())),
    )


def _check_ambient(key: Key, storage: Storage, url: str, rules: Rules) -> None:
    # With an endpoint of the user's choice the operator's identity would be shown to a server of the user's choice.
    if storage.endpoint:
        message = (
            "spec.storage.endpoint needs spec.storage.credentialsSecret: the operator sends its own identity nowhere."
        )
    elif not rules.allows_ambient(key.namespace, url):
        message = (
            f"The operator's own identity may not be used for {url} in namespace {key.namespace}. "
            "Set spec.storage.credentialsSecret, or have the administrator allow this prefix."
        )
    else:
        return
    raise StorageFaultError(StoreFault(Reason.AMBIENT_NOT_ALLOWED, message, stalled=True))


class RunStore:
    """An open store of one Checkpoint, with its log.

    Args:
        settings: Fixed; other settings need another session.
        writer: Signature of this operator in the log's audit trail.
        deletions: Objects per second; None for no limit.
        meter: Counts the calls; by default without limits.
        reading: Counts the calls that read snapshots back in the background.

    Attributes:
        readable: The store for reading back in the background.
        probed_at: When the store was probed last, on this process's steady clock.
        read_only: Why the store can be read and not written, or empty.
        refusal: Why the store does not let this operator delete, or empty.
    """

    def __init__(
        self,
        settings: StoreSettings,
        *,
        writer: str,
        deletions: RateLimit | None = None,
        meter: Meter | None = None,
        reading: Meter | None = None,
    ) -> None:
        self.settings = settings
        self.meter = meter or Meter(settings.url)
        opened = open_store(settings, timeouts=TIMEOUTS, on_page=self.meter.listed)
        self.store: MeteredStore = metered(opened, self.meter)
        self.reading = reading or Meter(settings.url)
        self.reading.begin(math.inf)
        self.readable: MeteredStore = metered(opened, self.reading)
        self._writer = writer
        self.forget_log()
        self._deletions = deletions
        self._clock: StoreClock | None = None
        self._tidied = False
        self._proven_at: float | None = None
        self.probed_at: float | None = None
        self.read_only = ""
        self.refusal = ""

    def probe(self) -> None:
        """Check that the store keeps its contract, and read its clock. Within an hour, check only that it takes writes.

        A store that only refuses writes, or only deletions, does not fail: see ``read_only`` and ``refusal``.

        Raises:
            StoreError: It does not keep its contract, or it failed.
        """
        self.probed_at = time.monotonic()
        self.read_only = self.refusal = ""
        try:
            if self._proven_at is None or self.probed_at - self._proven_at >= PROVEN_SECONDS:
                probe(self.store)
                self._proven_at = self.probed_at
            self.read_clock()
        except DeletionRefusedError as error:
            self.refusal = str(error)
            self.read_clock()
        except AccessDeniedError as error:
            self._check_readable()
            self.read_only = str(error)
        else:
            if not self._tidied:
                self._discard_probes()
                self._tidied = True

    @property
    def proven(self) -> bool:
        """Whether the store kept its contract when it was last asked."""
        return self._proven_at is not None

    def begin_action(self) -> None:
        """Start the budget of another action."""
        self.meter.begin(ACTION_SECONDS)

    def keys(self) -> list[str]:
        """List all keys under the prefix.

        Raises:
            StoreError: It could not be listed completely.
        """
        return [info.key for info in self.store.list()]

    def forget_log(self) -> None:
        """Read the log from its start: that of a deleted run had the same keys."""
        self.log = RunLog(self.store, writer=self._writer, timeout_seconds=APPEND_TIMEOUT_SECONDS, keep=MAX_REPORTED)

    def read_log(self) -> Run:
        """Read what is new in the log and make sure that the log still exists. Start over if another one replaced it.

        Raises:
            LogError, LogMissingError, StoreError: It cannot be read.
        """
        known = self.log.run.head
        try:
            run = self.log.refresh()
            if not 0 < known < run.head:  # else its last entry was just read
                self.log.prove()
        except LogReplacedError as error:
            logger.warning("%s", error)
            self.forget_log()
            run = self.log.refresh()
        return run

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, in batches and no faster than the limit.

        Raises:
            StoreError: At least one was not deleted.
        """
        for batch in batches(keys, KEYS_PER_BATCH):
            if self._deletions is not None:
                wait = self._deletions.reserve(len(batch))
                self.meter.pause(wait)
                time.sleep(wait)
            self.store.delete(batch)

    def _check_readable(self) -> None:
        """Read the log, and from its newest entry the clock.

        Raises:
            AccessDeniedError: It cannot be read either.
            StoreError: It failed.
        """
        run = self.log.refresh()
        newest = self.store.stat(layout.log_key(run.head)) if run.head else None
        if newest is not None:
            # The latest known moment of a store that cannot be written. No decision depends on it.
            self._clock = StoreClock(newest.modified, time.monotonic())

    def _discard_probes(self) -> None:
        """Delete what killed processes left of their probes."""
        modified = {info.key: info.modified for info in self.store.list(layout.PROBE_FOLDER)}
        self.delete(orphans.old_probes(modified, now=self.now()))

    def read_clock(self) -> None:
        """Read the store's clock, which may have been set since the last reading.

        Raises:
            StoreError: It failed.
        """
        self._clock = read_store_clock(self.store, tidy=not self.refusal)

    def now(self) -> dt.datetime:
        """Return the time by the store's clock, extrapolated since the last reading with this process's steady clock.

        Raises:
            StoreError: The store was never probed.
        """
        if self._clock is None:
            raise StoreError("read the store's clock at", self.store.url, "it was not read yet")
        return self._clock.now()

    def progress(self) -> RunProgress | None:
        """Read the last heartbeat of the running attempt; None if there is none."""
        stored = read_heartbeat(self.store)
        if stored is None:
            return None
        heartbeat = stored.heartbeat
        return RunProgress(heartbeat.attempt, heartbeat.step, stored.at, heartbeat.ended)


def missing_log(session: RunStore, run: Run, checkpoint: Checkpoint) -> StoreFault | None:
    """Return a fault if the log of an earlier run is gone, or shorter than the Checkpoint's status has seen it.

    Raises:
        StoreError: The store failed.
    """
    if checkpoint.spec is None or checkpoint.spec.restore.on_missing == "StartFresh":
        return None
    found = traces(telling_keys(session.store)) if run.head == 0 else ()
    try:
        check_log(run, url=session.store.url, floor=checkpoint.status.get("logSequence") or 0, traces=found)
    except LogMissingError as error:
        return fault_from(error)
    return None
