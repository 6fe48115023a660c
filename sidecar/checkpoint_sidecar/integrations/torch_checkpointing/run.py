"""``SnapshotRun``: an attempt of a run whose checkpoints torch_checkpointing writes and reads."""

from __future__ import annotations

import os
import secrets
import socket
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Self

from checkpoint_sidecar.attempt.heartbeat import ProgressReport
from checkpoint_sidecar.attempt.session import AttemptSession, Candidate, Defaults
from checkpoint_sidecar.core.environment import DEFAULT_GRACE_SECONDS, URL, RunEnvironment
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.core.log import MAX_PODS, Owner, PodIdentity
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.integrations.torch_checkpointing.storage import SnapshotStorageConfig
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.fsspec.storage_options import settings_from
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.agreement import Agreement, most_telling
from checkpoint_sidecar.training.signals import TerminationWatch

_LEAVE_SECONDS = 5.0


class SnapshotRun:
    """An attempt of a run whose checkpoints torch_checkpointing writes and reads.

    >>> with SnapshotRun("s3://training/llama-7b") as run:
    ...     manager = CheckpointManager.Config(storage_config=run.storage).build()
    ...     step = run.restore(lambda path: manager.load(path, into=state))
    ...     manager.save(run.checkpoint(step + 500), state)

    Collective: create it on every rank after the process group, and leave it on every rank.

    Args:
        url: Location of the run; see ``Checkpointer``. In an injected pod the default is the pod's own.
        run: Owner of the prefix: a name. By default the last part of the URL's path.
        takeover_seconds: How long a start waits for another attempt that still trains before it stops that attempt.

    Attributes:
        storage: The ``storage_config`` of a ``CheckpointManager``.

    Raises:
        PrefixClaimedError, StoreError: See ``Checkpointer.restore``.
    """

    def __init__(self, url: str | StoreSettings = "", *, run: str = "", takeover_seconds: float = 120.0) -> None:
        self._agreement = Agreement.among_all()
        settings, owner, pod, floor, grace = _place_of(url, run)
        self._watch = TerminationWatch(grace)
        self._watch.install()
        self._store = open_store(settings)
        self._session = AttemptSession(self._store, owner, Defaults(SavePolicy(), "Never"), log_floor=floor)
        pods = tuple({each.uid: each for each in self._agreement.gather(pod)}.values())[:MAX_PODS]

        def start() -> tuple[int, str, str]:
            ranks = self._agreement.world_size
            self._session.start(world_size=ranks, pods=pods, timeout_seconds=takeover_seconds)
            return self._session.attempt, secrets.token_hex(16), self._session.log.run.short_identity

        attempt, token, identity = self._agreement.from_rank_0(start)
        self.storage = SnapshotStorageConfig(
            settings, owner, attempt, self._agreement.rank, self._agreement.world_size, token, identity
        )
        self._heartbeat = ProgressReport(
            self._store, attempt=attempt, pods=pods, fenced=self._fenced, refresh=self._session.log.refresh
        )
        if self._agreement.leads:
            self._heartbeat.start()

    def checkpoint(self, step: int) -> str:
        """Return the path at which torch_checkpointing saves a step."""
        return str(self.storage.root / f"step-{step}")

    def should_stop(self, step: int) -> bool:
        """Report that a step is done, and return whether a pod of the run was asked to terminate. Collective.

        Then save the step, close the manager and leave with ``sys.exit(143)``, so that the pod is replaced.

        Raises:
            FencedError: A later attempt has started.
        """
        self._heartbeat.step = step
        self._agreement.raise_any(self._session.fenced if self._agreement.leads else None)
        return any(self._agreement.gather(self._watch.stop() is not None))

    def restore(self, load: Callable[[str], object]) -> int:
        """Load the snapshot that the run's log decides on, and return its step; 0 for a fresh start. Collective.

        Args:
            load: Loads the checkpoint at a path. If its bytes prove damaged on any rank, the next older one follows.

        Raises:
            RestoreError: Snapshots were committed, but none can be restored.
            RestoreInterrupted: The load failed for another reason; start again.
        """
        while True:
            candidate = self._agreement.from_rank_0(self._session.next_candidate)
            if candidate is None:
                return 0
            self.storage.chosen[candidate.step] = candidate.snapshot
            began, failure = time.monotonic(), None
            try:
                load(self.checkpoint(candidate.step))
            except INTERRUPTS:
                raise
            except BaseException as error:  # noqa: BLE001 - rank 0 judges it for all
                failure = _telling(error)
            found = most_telling(self._agreement.gather_errors(failure))
            self._agreement.from_rank_0(partial(self._judge, candidate, found, time.monotonic() - began))
            if found is None:
                return int(candidate.step)

    def _judge(self, candidate: Candidate, error: Exception | None, seconds: float) -> None:
        if error is not None:
            self._session.failed(candidate.snapshot, error)
        else:
            self._session.restored(candidate, seconds=seconds, compared=ComparedBytes(candidate.manifest))

    def _fenced(self) -> bool:
        return self._session.fenced is not None

    def close(self) -> None:
        """End the attempt's background work. Close the manager first: its saves are part of the attempt."""
        self._watch.remove()
        if self._agreement.leads:
            self._heartbeat.stop()
            self._session.stop(timeout_seconds=_LEAVE_SECONDS)
        self._agreement.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _place_of(url: str | StoreSettings, run: str) -> tuple[StoreSettings, Owner, PodIdentity, int, float]:
    process = PodIdentity(f"{socket.gethostname()}:{os.getpid()}", uuid.uuid4().hex)
    if url or not os.environ.get(URL):
        settings = settings_from(url)
        return settings, Owner.local(run, settings.url), process, 0, DEFAULT_GRACE_SECONDS
    env = RunEnvironment.parse(os.environ)
    return StoreSettings.of_environment(env), env.owner, env.pod or process, env.log_floor, env.grace_seconds


def _telling(error: BaseException) -> Exception:
    """Return the error of ours that caused another one, for its evidence, or the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CheckpointError):
        cause = cause.__cause__ or cause.__context__
    return portable(cause or error, operation="load a checkpoint from", subject="the run")
