"""``Checkpointer``: the library's main interface."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from checkpoint_sidecar.attempt.heartbeat import ProgressReport
from checkpoint_sidecar.attempt.session import AttemptSession, Defaults
from checkpoint_sidecar.attempt.warm_start import StartFrom
from checkpoint_sidecar.core.environment import DEFAULT_GRACE_SECONDS, RunEnvironment
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.failures import INTERRUPTS, portable
from checkpoint_sidecar.core.log import Owner, PodIdentity
from checkpoint_sidecar.core.policy import OverwritePolicy, SavePolicy
from checkpoint_sidecar.engine.folders.tree import TrainerFolder
from checkpoint_sidecar.engine.limits import EngineSettings
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.fsspec import misdirected
from checkpoint_sidecar.store.fsspec.opening import without_password
from checkpoint_sidecar.store.fsspec.storage_options import settings_from
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import exits
from checkpoint_sidecar.training.agreement import Agreement
from checkpoint_sidecar.training.dcp.restricted import Trust
from checkpoint_sidecar.training.folders import RunFolder
from checkpoint_sidecar.training.hooks import CommitHook, Hooks, RestoreHook, restored_snapshot
from checkpoint_sidecar.training.restoring import Restored, restore
from checkpoint_sidecar.training.saver import Saver
from checkpoint_sidecar.training.saving import BackgroundSave
from checkpoint_sidecar.training.signals import Terminated, TerminationWatch
from checkpoint_sidecar.training.starting import start_attempt
from checkpoint_sidecar.training.state.application import TrainingState
from checkpoint_sidecar.training.transfers import TransferProgress, Transfers
from checkpoint_sidecar.training.vote import Agreed, check_together
from checkpoint_sidecar.training.warm_starting import WarmStarting

logger = logging.getLogger(__name__)

Metrics = Mapping[str, Any]

_LEAVE_SECONDS = 5.0
# They end a generator or a task without a report.
_UNSEEN = (GeneratorExit, asyncio.CancelledError)


class Checkpointer:
    """Restores a training run, and saves it on schedule, on request, and when its pod is terminated.

    >>> with Checkpointer({"model": model, "optim": optim}, url="s3://training/llama-7b") as checkpointer:
    ...     for step in checkpointer.steps(total):
    ...         loss = train_step(step)
    ...         checkpointer.step(step, metrics={"loss": loss})

    Create it on every rank, in the main thread, after the process group exists and the model is sharded. Every rank
    must call every method at the same point; an error of one rank is raised on all. Saves run in the background: the
    loop waits only for the copy to host memory and for the previous save to end. A process group is not required.

    Args:
        state: Objects to save, by name: modules, optimizers, anything with ``state_dict`` and ``load_state_dict``,
            plain JSON values. See ``training.state.application`` for how each is stored and restored.
        url: Location of the run: ``s3://``, ``gs://``, ``az://``, ``file://``, any URL of fsspec, or ``StoreSettings``.
        filesystem: An fsspec filesystem that serves ``url``, instead of this package's own clients. Commits rely on its
            exclusive create, which is tested before the run starts; docs/storage.md lists filesystems that have it.
        storage_options: fsspec's options for ``url``, see ``store.fsspec.storage_options``.
        run: Owner of the prefix: a name, or the full owner. By default the last part of the URL's path.
        save: When a save is due, until the operator writes a policy into the run's log.
        overwrite: Whether saving an existing step raises an error, does nothing or replaces it; likewise.
        while_saving: Whether a scheduled save waits for one that is still uploading, or is skipped.
        trust: ``full`` allows snapshots to execute any pickled class on restore; use it for your own snapshots only.
        strict: Refuse to restore if the snapshot lacks a name that an object of the state has (``Optional`` objects may
            be absent), or has a name that the object lacks. False restores the names that both have and reports the
            rest. Objects that only the snapshot has are reported either way.
        grace_seconds: Time between SIGTERM and SIGKILL.
        takeover_seconds: How long a start waits for another attempt that still trains before it stops that attempt.
        stall_seconds: Timeout of a save that transfers no bytes while training waits for it; by default
            ``CHECKPOINT_STALL_SECONDS``, else 180.
        pod: This process's pod; by default derived from host name and process id.
        start_from: A snapshot of another run at which this one begins, as long as it has no commit:
            ``s3://training/llama@best``, or a ``StartFrom``. All objects are loaded, and training continues at the
            snapshot's step; ``StartFrom(url, part="model")`` loads the model only and starts at step 0. The first start
            records the snapshot in the log, and later ones use the same.
        log_floor: Number of a log entry that is known to exist, so that a lost log is not mistaken for a new run.
        files: A folder to save and restore along with the state, in the same commit; see ``FileSnapshots``.
        on_commit: Called on rank 0 with a ``CommittedSnapshot`` after each commit: a function or several. They run in a
            thread of their own; an exception is logged, and one that hangs delays neither saves nor training.
        on_restore: Called likewise with a ``RestoredSnapshot`` after each start, fresh ones too.

    Raises:
        ConfigurationError: The URL or an object of the state is invalid.
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
        start_from: str | StartFrom | None = None,
        log_floor: int = 0,
        filesystem: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        files: str | os.PathLike[str] | TrainerFolder | None = None,
        on_commit: CommitHook | Iterable[CommitHook] | None = None,
        on_restore: RestoreHook | Iterable[RestoreHook] | None = None,
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
                    settings = settings_from(url, filesystem=filesystem, storage_options=storage_options)
                    self.settings = settings
                    self._start_from = StartFrom.of(start_from)
                    owner = run if isinstance(run, Owner) else Owner.local(run, settings.url)
                    limits = replace(EngineSettings.from_environment(), beside_training=True)
                    if stall_seconds is not None:
                        limits = replace(limits, stall_seconds=stall_seconds)
                    self._store = open_store(settings)
                    self.folder = None if files is None else RunFolder(TrainerFolder.of(files))
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
                    folder=self.folder,
                )
        except BaseException:
            self._watch.remove()
            raise
        self._session = (
            AttemptSession(self._store, owner, Defaults(save or SavePolicy(), overwrite), log_floor=log_floor)
            if self._agreement.leads
            else None
        )
        self._hooks = Hooks(on_commit, on_restore)
        if self._session:
            self._session.on_commit = lambda entry: self._hooks.committed(entry, url=self._store.url)
        self._skip_while_saving = while_saving == "skip"
        self._trust = trust
        self._strict = strict
        self._takeover_seconds = takeover_seconds
        self._pod = pod
        self._progress: ProgressReport | None = None
        self._started = False
        self._closed = False
        self._step = 0
        self._metrics: Metrics = {}
        self.stopping = False
        """Whether ``due`` asked for the last save before the end."""

    @classmethod
    def from_env(cls, state: MutableMapping[str, Any], **options: Any) -> Self:
        """Create the checkpointer of an injected pod; ``options`` as in the constructor.

        Raises:
            ConfigurationError: The pod was not injected; the message explains how to fix that.
        """
        env = RunEnvironment.parse(os.environ)
        # A trainer in this process may also save by itself.
        misdirected.refuse()
        given = {
            "start_from": StartFrom.of_environment(env),
            "run": env.owner,
            "pod": env.pod,
            "grace_seconds": env.grace_seconds,
            "log_floor": env.log_floor,
        }
        return cls(state, StoreSettings.of_environment(env), **(given | options))

    # The training loop

    def steps(self, total: int) -> Iterator[int]:
        """Restore, then yield the remaining steps. After step N, N optimizer steps are done.

        After the last step, save its state unless it is saved already, and wait for all saves.

        Raises:
            CheckpointError: As from ``restore`` and ``save``.
        """
        if not self._saver:
            self.restore()
        self._restored("train")
        if self._step >= total:
            return
        # A draw since the restore, such as one by a data loader's iterator, was made before the save too.
        self._state.apply_again()
        for step in range(self._step + 1, total + 1):
            yield step
            self._step = step
        self.finish(total, self._metrics)

    def step(self, step: int, metrics: Metrics | None = None) -> None:
        """Report that ``step`` is done, and start a save if one is due.

        Args:
            metrics: Numbers by name, stored with the snapshot if there is one. Only those of rank 0 are used.

        Raises:
            Terminated: A pod of the run was asked to terminate, and as much as possible is saved. Do not catch it.
            FencedError: A later attempt has started. Do not catch it.
            CheckpointError: A save failed, and ``save.onFailure`` or the number of failures requires training to stop.
        """
        saver = self._restored("finish a step of")
        with self._watch.inside(f"finish step {step}"):
            agreed = self._report(saver, step, metrics)
            if agreed.stop:
                saver.terminate(step, self._metrics)
            if agreed.trigger and not (agreed.saving and self._skip_while_saving):
                saver.save(step, agreed.trigger, self._metrics)

    def finish(self, step: int, metrics: Metrics | None = None) -> None:
        """Save the last step unless it is saved already, and wait for all saves. ``steps`` calls it.

        Raises:
            CheckpointError: As from ``save``.
        """
        saver = self._restored("finish")
        with self._watch.inside("save the last step"):
            saver.save(step, "Final", metrics or {})
            saver.wait()

    def due(self, step: int, metrics: Metrics | None = None) -> bool:
        """Report that ``step`` is done, like ``step``, but leave the save to the caller.

        Returns:
            Whether to prepare the state and call ``save_due``. If ``stopping`` is set, that is the last save.

        Raises:
            Terminated, FencedError, CheckpointError: See ``step``.
        """
        saver = self._restored("finish a step of")
        with self._watch.inside(f"finish step {step}"):
            agreed = self._report(saver, step, metrics)
            if agreed.stop:
                if not saver.may_save_last(agreed):
                    saver.terminate(step, self._metrics)
                self.stopping = True
                return True
            return agreed.trigger is not None and not (agreed.saving and self._skip_while_saving)

    def save_due(self, step: int, metrics: Metrics | None = None) -> None:
        """Save in the background, whether or not ``due`` asked for it. A step that is saved already is not saved again.

        Raises:
            Terminated, FencedError, CheckpointError: See ``step``. Terminated comes after the last save.
        """
        saver = self._restored("save to")
        with self._watch.inside(f"save step {step}"):
            agreed = self._report(saver, step, metrics)
            if agreed.stop:
                saver.terminate(step, self._metrics)
            if not (agreed.saving and self._skip_while_saving):
                saver.save(step, agreed.trigger or "Schedule", self._metrics)

    def save(self, step: int, metrics: Metrics | None = None) -> str:
        """Save now and wait for the commit. After it returns, the snapshot survives the loss of every pod.

        Returns:
            The snapshot's id. Under the overwrite policy Skip this may be an earlier snapshot.

        Raises:
            CheckpointExistsError: The step is saved and the policy is Never.
            CheckpointError: The save failed, or an earlier one did after which training must stop.
        """
        saver = self._restored("save to")
        with self._watch.inside(f"save step {step}"):
            existing = saver.save(step, "Manual", metrics or {})
            saver.wait()
            return existing or saver.saved_as(step)

    def save_and_stop(self, within_seconds: float | None = None) -> None:
        """Request a last save and the end of training: the next ``step`` saves and raises ``Terminated`` on all ranks.

        Use it for a job's own signals, such as SIGUSR1, which Slurm sends before the time limit. It only sets a flag,
        so it may be called in a signal handler, in any thread, on one rank or several, any number of times.

        Args:
            within_seconds: Seconds until the process is killed; None if the save may take as long as it needs.
        """
        self._watch.ask(within_seconds)

    def wait(self) -> None:
        """Wait for the running save, if there is one.

        Raises:
            CheckpointError: The save failed, or this attempt is fenced.
        """
        if self._saver:
            with self._watch.inside("wait for the running save"):
                self._saver.wait()

    @property
    def terminating(self) -> bool:
        """Whether this process was asked to terminate. Other ranks may not have been: ``step`` makes them agree."""
        return self._watch.stop() is not None

    @property
    def last_staging_seconds(self) -> float | None:
        """Time for which the latest save blocked the loop to copy the state to host memory."""
        return self._saver.last_staging_seconds if self._saver else None

    @property
    def progress(self) -> TransferProgress | None:
        """Progress of this rank's running save or restore, or None. May be read from any thread."""
        return self._transfers.progress

    def restore(self) -> Restored | None:
        """Start an attempt and load its snapshot. Returns None for a fresh start. ``steps`` calls it.

        Raises:
            RestoreError: Snapshots were committed, but none can be restored. Training never falls back to step 0.
            RestoreInterrupted: The restore stopped for a reason such as a failing store; start again.
            IncompatibleSnapshotError: The snapshot does not fit the model; nothing was loaded.
            PrefixClaimedError: The URL belongs to another run.
        """
        if self._started or self._closed:
            raise ConfigurationError(
                "restore",
                self._store.url,
                "this Checkpointer is closed" if self._closed else "this Checkpointer has already restored or tried to",
                "A process restores once; after a failure, start it again.",
            )
        with self._watch.inside("start"):
            self._watch.keep()
            restored = self._restore()
        self._watch.training()
        return restored

    def _restore(self) -> Restored | None:
        self._progress = start_attempt(
            self._session, self._agreement, self._pod, takeover_seconds=self._takeover_seconds
        )
        self._started = True
        elsewhere = WarmStarting(
            self._start_from,
            self.settings,
            self._session,
            self._agreement,
            self._trust,
            self._strict,
            self._transfers,
            self.folder,
        )
        if self.folder is not None:
            self.folder.open(self._agreement)
        restored = elsewhere.begin(self._state) or restore(
            self._state,
            session=self._session,
            store=self._store,
            agreement=self._agreement,
            trust=self._trust,
            strict=self._strict,
            transfers=self._transfers,
            folder=self.folder,
            unchanged=self._saves.unchanged,
        )
        if restored is None and self.folder is not None:
            self.folder.begin(self._agreement, anew=lambda: self._led.log.run.ever_committed)
        self._step = restored.step if restored else 0
        self._saver = Saver(self._state, self._saves, self._agreement, self._session, self._watch, step=self._step)
        if self._progress:
            self._progress.step = self._step
        if self._session:
            self._hooks.restored(restored_snapshot(self._session, restored))
        return restored

    def _report(self, saver: Saver, step: int, metrics: Metrics | None) -> Agreed:
        """Vote on what to do after a step, and handle a save that failed."""
        self._watch.keep()
        self._step, self._metrics = step, metrics or {}
        agreed = self._agreement.vote(saver.vote(step))
        check_together(agreed)
        if self._progress:
            self._progress.step = step
        if agreed.failed:
            saver.handle_failure("Termination" if agreed.stop else None)
        return agreed

    def close(self) -> None:
        """Wait for the running save and release all resources. Idempotent.

        Raises:
            CheckpointError: The save failed.
        """
        if self._closed or self._forked:
            return
        try:
            self.wait()
            if self._saves.debt is not None:
                raise self._saves.debt
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
        # Other ranks may be at any point, so no collectives here. A running save needs only their background threads.
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

    @property
    def _led(self) -> AttemptSession:
        assert self._session is not None  # only rank 0 gets here
        return self._session

    # On every rank

    def _lost(self) -> str:
        return self._saver.lost() if self._saver else "nothing was trained yet"

    def _restored(self, operation: str) -> Saver:
        if self._closed or self._forked:
            now = "this process was forked from the one that trains" if self._forked else "this Checkpointer is closed"
            raise ConfigurationError(operation, self._store.url, now, "Use a new one.")
        if not self._saver:
            cause, fix = "nothing was restored yet", "Call restore(), or loop over steps(total)."
            raise ConfigurationError(operation, self._store.url, cause, fix)
        return self._saver

    @property
    def _forked(self) -> bool:
        """Whether this process is a child of the one that trains, such as a data loader's worker. It owns nothing."""
        return os.getpid() != self._pid

    def _leave(self) -> None:
        """Release all resources, without collectives."""
        self._closed = True
        stop = self._watch.stop()
        seconds = _LEAVE_SECONDS if stop is None else min(1.0, stop.remaining_seconds - 1.0)
        deadline = time.monotonic() + seconds
        with self._watch.inside("close"):
            for part in (self._progress, self._saver, self._session):
                if part is not None:
                    part.stop(timeout_seconds=max(0.0, deadline - time.monotonic()))
            self._saves.close()
            self._hooks.stop(timeout_seconds=max(0.0, deadline - time.monotonic()))
            self._agreement.close()
        self._watch.remove()
