"""``SnapshotRun``: an attempt of a run whose checkpoints torch_checkpointing writes and reads."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Self

from checkpoint_sidecar.attempt.session import AttemptSession, Candidate, Defaults
from checkpoint_sidecar.core.environment import RunEnvironment
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.core.owner import Owner
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.integrations.torch_checkpointing.storage import SnapshotStorageConfig
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.fsspec.storage_options import settings_from
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.agreement import Agreement, most_telling
from checkpoint_sidecar.training.signals import TerminationWatch
from checkpoint_sidecar.training.starting import start_attempt

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
        if url:
            settings = settings_from(url)
            env = RunEnvironment(Owner.local(run, settings.url), settings.url)
        else:
            env = RunEnvironment.parse(os.environ)
            settings = StoreSettings.of_environment(env)
        with ExitStack() as opened:
            self._agreement = Agreement.among_all()
            opened.callback(self._agreement.close)
            self._watch = TerminationWatch(env.grace_seconds)
            self._watch.install()
            opened.callback(self._watch.remove)
            session = AttemptSession(open_store(settings), env.owner, Defaults(), log_floor=env.log_floor)
            opened.callback(session.stop, timeout_seconds=_LEAVE_SECONDS)
            self._heartbeat = start_attempt(session, self._agreement, env.pod, takeover_seconds=takeover_seconds)
            if self._heartbeat is not None:
                opened.callback(self._heartbeat.stop)
            attempt, identity, token = self._agreement.from_rank_0(
                lambda: (session.attempt, session.log.run.short_identity, secrets.token_hex(16))
            )
            self._opened = opened.pop_all()
        self._session, ranks = session, self._agreement
        self.storage = SnapshotStorageConfig(
            settings,
            env.owner,
            identity=identity,
            attempt=attempt,
            token=token,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )

    def checkpoint(self, step: int) -> str:
        """Return the path at which torch_checkpointing saves a step."""
        return str(self.storage.root / f"step-{step}")

    def should_stop(self, step: int) -> bool:
        """Report that a step is done, and return whether a pod of the run was asked to terminate. Collective.

        Then save the step, close the manager and leave with ``sys.exit(143)``, so that the pod is replaced.

        Raises:
            FencedError: A later attempt has started.
        """
        if self._heartbeat is not None:
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

    def close(self) -> None:
        """End the attempt's background work. Close the manager first: its saves are part of the attempt."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _telling(error: BaseException) -> Exception:
    """Return the error of ours that caused another one, for its evidence, or the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CheckpointError):
        cause = cause.__cause__ or cause.__context__
    return portable(cause or error, operation="load a checkpoint from", subject="the run")
