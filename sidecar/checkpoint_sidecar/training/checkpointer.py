"""``Checkpointer``: the library's main way in."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from checkpoint_sidecar.attempt.heartbeat import ProgressReport
from checkpoint_sidecar.attempt.session import AttemptSession, Defaults
from checkpoint_sidecar.core.environment import DEFAULT_GRACE_SECONDS, RunEnvironment
from checkpoint_sidecar.core.errors import ConfigurationError, FencedError
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.core.log import MAX_PODS, Owner, PodIdentity
from checkpoint_sidecar.core.policy import OverwritePolicy, SavePolicy
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings
from checkpoint_sidecar.store.fsspec import misdirected
from checkpoint_sidecar.store.fsspec.opening import without_password
from checkpoint_sidecar.store.fsspec.storage_options import settings_of
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import exits
from checkpoint_sidecar.training.agreement import Agreement
from checkpoint_sidecar.training.dcp.restricted import Trust
from checkpoint_sidecar.training.restoring import Restored, restore
from checkpoint_sidecar.training.saver import Saver
from checkpoint_sidecar.training.saving import BackgroundSave
from checkpoint_sidecar.training.signals import Terminated, TerminationWatch
from checkpoint_sidecar.training.state.application import TrainingState
from checkpoint_sidecar.training.transfers import TransferProgress, Transfers
from checkpoint_sidecar.training.vote import Agreed

logger = logging.getLogger(__name__)

Metrics = Mapping[str, Any]

_LEAVE_SECONDS = 5.0
# They end a generator or a task, and are reported nowhere.
_UNSEEN = (GeneratorExit, asyncio.CancelledError)


class Checkpointer:
    """Restores a training run, and saves it when due, when asked, and when its pod is asked to terminate.

    >>> with Checkpointer({"model": model, "optim": optim}, url="s3://training/llama-7b") as checkpointer:
    ...     for step in checkpointer.steps(total):
    ...         loss = train_step(step)
    ...         checkpointer.step(step, metrics={"loss": loss})

    Create it after the process group and after the model was sharded, on every rank, in the main thread. Every rank
    calls every method at the same point; errors of one rank are raised on all. Saves run in the background: the loop
    waits only for the copy into host memory, and for the end of the save before. Works without a process group too.

    Args:
        state: Objects to save, by name: modules, optimizers, anything with ``state_dict`` and ``load_state_dict``,
            plain JSON values. See ``training.state.application`` for how each is stored and given back.
        url: Where the run lives: ``s3://``, ``gs://``, ``az://``, ``file://``, or a URL that fsspec serves; or settings
            with an endpoint and credentials.
        filesystem: An fsspec filesystem that serves ``url``, instead of this package's own clients. Commits rest on its
            exclusive create, which is tried out before the run starts; docs/storage.md says which ones have it.
        storage_options: fsspec's for ``url``, see ``store.fsspec.storage_options``.
        run: Whom the prefix belongs to: a name, or the full owner. By default the last part of the URL's path.
        save: When a save is due, until the operator writes a policy into the run's log.
        overwrite: What saving an existing step means: an error, nothing, or a replacement; likewise.
        while_saving: What a scheduled save does while another one is still uploading: wait for it, or skip its turn.
        trust: ``full`` allows snapshots to execute any pickled class on restore; only for snapshots that are your own.
        strict: Refuse to restore when the snapshot lacks a name that an object of the state wants (``Optional`` objects
            may be absent), or holds one of an object that the object does not take. False restores what both have and
            reports the rest. Objects that only the snapshot has are reported either way.
        grace_seconds: From SIGTERM to SIGKILL.
        takeover_seconds: How long a start waits for another attempt that is still training before it stops that one.
        stall_seconds: How long a save that is waited for may move no byte before it is given up; by default what
            ``CHECKPOINT_STALL_SECONDS`` says, else 180.
        pod: This process's pod; made up from host and process id by default.
        log_floor: Number of a log entry that is known to exist, so that a log that was lost is not taken for a new run.

    Raises:
        ConfigurationError: The URL, or an object of the state, cannot work.
    """

    def __init__(
        self,
        state: MutableMapping[str, Any],
        url: str | StoreSettings,
        *,
        run: str | Owner = "",
        save: SavePolicy | None = None,
        overwrite: OverwritePolicy = "Never",
        while_saving: Literal["wait", "skip"] = "wait",
        trust: Trust = "safe",
        strict: bool = True,
        grace_seconds: float = DEFAULT_GRACE_SECONDS,
        takeover_seconds: float = 120.0,
        stall_seconds: float | None = None,
        pod: PodIdentity | None = None,
        log_floor: int = 0,
        filesystem: Any = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._saver: Saver | None = None
        self._watch = TerminationWatch(grace_seconds, lost=self._lost)
        self._watch.install(starting=True)
        try:
            with self._watch.inside("open the run"):
                self._agreement = Agreement.among_all()
                failure: Exception | None = None
                try:
                    settings = _settings(url, storage_options or {}, filesystem)
                    owner = run if isinstance(run, Owner) else _local_owner(run, settings.url)
                    limits = replace(EngineSettings.from_environment(), beside_training=True)
                    if stall_seconds is not None:
                        limits = replace(limits, stall_seconds=stall_seconds)
                    self._store = open_store(settings)
                    self._state = TrainingState(state, rank=self._agreement.rank, trust=trust)
                except INTERRUPTS:
                    raise
                except BaseException as error:  # noqa: BLE001 - raised below, on all ranks
                    failure = portable(error, operation="open the run", subject=without_password(str(url)))
                self._agreement.raise_any(failure)
                self._transfers = Transfers(show=self._agreement.leads)
                self._saves = BackgroundSave(
                    self._store,
                    Agreement.among_all(),
                    self._transfers,
                    limits,
                    stop=self._watch.stop,
                )
        except BaseException:
            self._watch.remove()
            raise
        self._session = (
            AttemptSession(self._store, owner, Defaults(save or SavePolicy(), overwrite), log_floor=log_floor)
            if self._agreement.leads
            else None
        )
        self._skip_while_saving = while_saving == "skip"
        self._trust = trust
        self._strict = strict
        self._takeover_seconds = takeover_seconds
        self._pod = pod or PodIdentity(f"{socket.gethostname()}:{os.getpid()}", uuid.uuid4().hex)
        self._progress: ProgressReport | None = None
        self._started = False
        self._closed = False
        self._step = 0
        self._metrics: Metrics = {}

    @classmethod
    def from_env(cls, state: MutableMapping[str, Any], **options: Any) -> Self:
        """The checkpointer of an injected pod; ``options`` as in the constructor.

        Raises:
            ConfigurationError: The pod was not injected; the message says how to change that.
        """
        env = RunEnvironment.parse(os.environ)
        # A trainer in this process may save by itself as well.
        misdirected.refuse()
        settings = StoreSettings(
            env.url,
            endpoint=env.endpoint,
            region=env.region,
            addressing_style=env.addressing_style,
            credentials=Credentials.in_folder(env.credentials_folder) if env.credentials_folder else AMBIENT,
            server_side_encryption=env.server_side_encryption,
            kms_key_id=env.kms_key_id,
            requester_pays=env.requester_pays,
            tags=env.tags,
        )
        given = {
            "run": env.owner,
            "pod": env.pod,
            "grace_seconds": env.grace_seconds,
            "log_floor": env.log_floor,
        }
        return cls(state, settings, **(given | options))

    # The training loop

    def steps(self, total: int) -> Iterator[int]:
        """Restore, then yield the steps that remain: step N means that N optimizer steps are done after it.

        After the last one its state is saved, unless it is already, and all saves are waited for.

        Raises:
            CheckpointError: As from ``restore`` and ``save``.
        """
        if not self._saver:
            self.restore()
        saver = self._restored("train")
        if self._step >= total:
            return
        # What was drawn since the restore, by the iterator of a data loader perhaps, was drawn before the save too.
        self._state.apply_again()
        for step in range(self._step + 1, total + 1):
            yield step
            self._step = step
        with self._watch.inside("save the last step"):
            saver.save(total, "Final", self._metrics)
            saver.wait()

    def step(self, step: int, metrics: Metrics | None = None) -> None:
        """Say that ``step`` is done; save if it is time.

        Args:
            metrics: Numbers by name, stored with the snapshot if one is made. Those of rank 0 count.

        Raises:
            Terminated: A pod of the run was asked to terminate, and what could be saved is saved. Let it go.
            FencedError: A later attempt has started. Let it go.
            CheckpointError: A save failed, and ``save.onFailure`` or the number of failures says that this ends
                training.
        """
        saver = self._restored("finish a step")
        with self._watch.inside(f"finish step {step}"):
            self._watch.keep()
            self._step, self._metrics = step, metrics or {}
            agreed = self._agreement.vote(saver.vote(step))
            _check_together(agreed)
            if self._progress:
                self._progress.step = step
            if agreed.failed:
                saver.look("Termination" if agreed.stop else None)
            if agreed.stop:
                saver.terminate(step, self._metrics)
            if agreed.trigger and not (agreed.saving and self._skip_while_saving):
                saver.save(step, agreed.trigger, self._metrics)

    def save(self, step: int, metrics: Metrics | None = None) -> str:
        """Save now and wait for the commit: when this returns, the snapshot survives the loss of every pod.

        Returns:
            The snapshot's id; under the overwrite policy Skip perhaps that of an earlier one.

        Raises:
            CheckpointExistsError: The step is saved and the policy is Never.
            CheckpointError: The save failed, or an earlier one after which training may not go on.
        """
        saver = self._restored("save")
        with self._watch.inside(f"save step {step}"):
            existing = saver.save(step, "Manual", metrics or {})
            saver.wait()
            return existing or saver.saved_as(step)

    def save_and_stop(self, within_seconds: float | None = None) -> None:
        """Ask for a last save and the end of training: the next ``step`` saves and raises ``Terminated`` on all ranks.

        For signals of a job's own, such as SIGUSR1 of Slurm before its time limit. Only makes a note, so it may be
        called in a signal handler, in any thread, on one rank or on several, any number of times.

        Args:
            within_seconds: When the process is killed, from now; None if it is left as long as the save takes.
        """
        self._watch.ask(within_seconds)

    def wait(self) -> None:
        """Wait for the running save, if there is one.

        Raises:
            CheckpointError: It failed, or this attempt is fenced.
        """
        if self._saver:
            with self._watch.inside("wait for the running save"):
                self._saver.wait()

    @property
    def last_staging_seconds(self) -> float | None:
        """How long the latest save kept the loop waiting for the copy into host memory."""
        return self._saver.last_staging_seconds if self._saver else None

    @property
    def progress(self) -> TransferProgress | None:
        """What this rank saves or restores at the moment and how far it has got; None if nothing. For any thread."""
        return self._transfers.progress

    def restore(self) -> Restored | None:
        """Start an attempt and load what it goes on from; None for a fresh start. ``steps`` calls it.

        Raises:
            RestoreError: Something was committed once and nothing can be restored. Training never starts at step 0 by
                itself.
            RestoreInterrupted: The store failed or the like; start again.
            IncompatibleSnapshotError: The snapshot does not fit the model; nothing was loaded.
            PrefixClaimedError: The URL belongs to another run.
        """
        if self._started or self._closed:
            raise ConfigurationError(
                "restore",
                self._store.url,
                "this Checkpointer is closed" if self._closed else "this Checkpointer has tried that already",
                "Each start of the process restores once; after a failure, start it again.",
            )
        with self._watch.inside("start"):
            self._watch.keep()
            restored = self._restore()
        self._watch.training()
        return restored

    def _restore(self) -> Restored | None:
        pods = tuple({pod.uid: pod for pod in self._agreement.gather(self._pod)}.values())
        attempt = self._agreement.from_rank_0(lambda: self._start(pods))
        self._started = True
        if self._session:
            self._progress = ProgressReport(
                self._store,
                attempt=attempt,
                pods=pods[:MAX_PODS],
                fenced=lambda: self._fenced() is not None,
                refresh=self._session.log.refresh,
            )
            self._progress.start()
        restored = restore(
            self._state,
            session=self._session,
            store=self._store,
            agreement=self._agreement,
            trust=self._trust,
            strict=self._strict,
            transfers=self._transfers,
        )
        self._step = restored.step if restored else 0
        self._saver = Saver(self._state, self._saves, self._agreement, self._session, self._watch, step=self._step)
        if self._progress:
            self._progress.step = self._step
        return restored

    def close(self) -> None:
        """Wait for the running save and let go of everything. Idempotent.

        Raises:
            CheckpointError: The save failed.
        """
        if self._closed or self._forked:
            return
        try:
            self.wait()
            debt = self._saves.debt
            if debt is not None:
                raise debt
        finally:
            self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self._closed or self._forked:
            self.close()
            return
        # The peers may be anywhere, so no collectives here. A running save needs only their background threads.
        try:
            with self._watch.inside("wait for the running save"):
                self._saves.finish()
        finally:
            failure = self._saves.take().error or self._saves.debt
            self._leave()
        if failure is None or isinstance(error, Terminated):
            return
        if isinstance(error, SystemExit) and error.code in (None, 0):
            raise failure from error
        logger.critical("left by %s while a save had failed: %s", type(error).__name__, failure)
        if isinstance(error, _UNSEEN):
            exits.fail(failure)

    # On rank 0

    def _start(self, pods: tuple[PodIdentity, ...]) -> int:
        return self._led.start(
            world_size=self._agreement.world_size, pods=pods, patience_seconds=self._takeover_seconds
        )

    @property
    def _led(self) -> AttemptSession:
        assert self._session is not None  # only rank 0 gets here
        return self._session

    # On every rank

    def _fenced(self) -> FencedError | None:
        return self._session.fenced if self._session and self._session.attempt else None

    def _lost(self) -> str:
        return self._saver.lost() if self._saver else "nothing was trained yet"

    def _restored(self, operation: str) -> Saver:
        if self._closed or self._forked:
            state = (
                "this process was forked from the one that trains" if self._forked else "this Checkpointer is closed"
            )
            raise ConfigurationError(operation, self._store.url, state, "Use a new one.")
        if not self._saver:
            raise ConfigurationError(
                operation, self._store.url, "nothing was restored yet", "Call restore(), or loop over steps(total)."
            )
        return self._saver

    @property
    def _forked(self) -> bool:
        """Whether this is a child of the process that trains, such as a worker of a data loader: it owns nothing."""
        return os.getpid() != self._pid

    def _leave(self) -> None:
        """Let go of everything, without collectives."""
        self._closed = True
        stop = self._watch.stop()
        seconds = _LEAVE_SECONDS if stop is None else min(1.0, stop.remaining_seconds - 1.0)
        deadline = time.monotonic() + seconds
        with self._watch.inside("close"):
            for part in (self._progress, self._saver, self._session):
                if part is not None:
                    part.stop(timeout_seconds=max(0.0, deadline - time.monotonic()))
            self._saves.close()
            self._agreement.close()
        self._watch.remove()


def _check_together(agreed: Agreed) -> None:
    if agreed.first != agreed.last:
        raise ConfigurationError(
            "finish a step",
            f"steps {agreed.first} to {agreed.last}",
            "the ranks are at different steps",
            "Call step() equally often, with the same number, on every rank.",
        )


def _settings(url: str | StoreSettings, options: Mapping[str, Any], filesystem: Any) -> StoreSettings:
    if isinstance(url, str):
        return settings_of(url, options, filesystem) if options or filesystem is not None else StoreSettings(url)
    if options:
        raise ConfigurationError(
            "open the run", url.url, "settings and storage_options were both passed", "Pass one of the two."
        )
    return url if filesystem is None else replace(url, filesystem=filesystem)


def _local_owner(name: str, url: str) -> Owner:
    return Owner("local", "local", name or url.rstrip("/").rpartition("/")[2])
