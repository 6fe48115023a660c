"""``Checkpointer``: the library's main way in."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

from checkpoint_sidecar.core.environment import DEFAULT_GRACE_SECONDS, RunEnvironment
from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError, FencedError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.core.log import MAX_PODS, Owner, PodIdentity, Trigger
from checkpoint_sidecar.core.policy import OverwritePolicy, SavePolicy
from checkpoint_sidecar.core.schedule import RESERVE_SECONDS, LastSave, due
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.store.settings import AMBIENT, Credentials, StoreSettings
from checkpoint_sidecar.training.agreement import Agreement
from checkpoint_sidecar.training.progress import ProgressReport
from checkpoint_sidecar.training.reader import Trust
from checkpoint_sidecar.training.restoring import Restored, restore
from checkpoint_sidecar.training.saving import BackgroundSave
from checkpoint_sidecar.training.session import Defaults, Session
from checkpoint_sidecar.training.signals import Terminated, TerminationWatch
from checkpoint_sidecar.training.state import TrainingState
from checkpoint_sidecar.training.target import Draft, RunTarget, decimal_strings
from checkpoint_sidecar.training.termination import CLEANUP_SECONDS, LastAct, Situation, next_act
from checkpoint_sidecar.training.transfers import TransferProgress, Transfers
from checkpoint_sidecar.training.vote import Agreed, Vote

logger = logging.getLogger(__name__)

Metrics = Mapping[str, Any]

_LOOK_SECONDS = 0.5


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
            plain JSON values. See ``training.state`` for how each is stored and given back.
        url: Where the run lives, ``s3://``, ``gs://``, ``az://`` or ``file://``; or settings with an endpoint and
            credentials.
        run: Whom the prefix belongs to: a name, or the full owner. By default the last part of the URL's path.
        save: When a save is due, until the operator writes a policy into the run's log.
        overwrite: What saving an existing step means: an error, nothing, or a replacement; likewise.
        while_saving: What a scheduled save does while another one is still uploading: wait for it, or skip its turn.
        trust: ``full`` allows snapshots to execute any pickled class on restore; only for snapshots that are your own.
        grace_seconds: From SIGTERM to SIGKILL.
        takeover_seconds: How long a start waits for another attempt that is still training before it stops that one.
        pod: This process's pod; made up from host and process id by default.

    Attributes:
        last_staging_seconds: How long the latest save kept the loop waiting for the copy into host memory.

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
        grace_seconds: float = DEFAULT_GRACE_SECONDS,
        takeover_seconds: float = 120.0,
        pod: PodIdentity | None = None,
    ) -> None:
        settings = StoreSettings(url) if isinstance(url, str) else url
        owner = run if isinstance(run, Owner) else _local_owner(run, settings.url)
        self._store = open_store(settings)
        self._agreement = Agreement.among_all()
        self._state = TrainingState(state, rank=self._agreement.rank, trust=trust)
        self._transfers = Transfers(show=self._agreement.leads)
        self._saves = BackgroundSave(self._store, Agreement.among_all(), self._transfers)
        self._session = (
            Session(self._store, owner, Defaults(save or SavePolicy(), overwrite)) if self._agreement.leads else None
        )
        self._skip_while_saving = while_saving == "skip"
        self._trust = trust
        self._takeover_seconds = takeover_seconds
        self._pod = pod or PodIdentity(f"{socket.gethostname()}:{os.getpid()}", uuid.uuid4().hex)
        self._watch = TerminationWatch(grace_seconds)
        self._progress: ProgressReport | None = None
        self._started = False
        self._restored = False
        self._closed = False
        self._step = 0
        self._metrics: Metrics = {}
        self._last = LastSave(0, time.monotonic())
        self._eviction_served = False
        self.last_staging_seconds: float | None = None

    @classmethod
    def from_env(cls, state: MutableMapping[str, Any], **options: Any) -> Self:
        """The checkpointer of an injected pod; ``options`` as in the constructor.

        Raises:
            ConfigurationError: The pod was not injected; the message says how to change that.
        """
        env = RunEnvironment.parse(os.environ)
        settings = StoreSettings(
            env.url,
            endpoint=env.endpoint,
            region=env.region,
            addressing_style=env.addressing_style,
            credentials=Credentials.in_folder(env.credentials_folder) if env.credentials_folder else AMBIENT,
        )
        given = {"run": env.owner, "pod": env.pod, "grace_seconds": env.grace_seconds}
        return cls(state, settings, **(given | options))

    # The training loop

    def steps(self, total: int) -> Iterator[int]:
        """Restore, then yield the steps that remain: step N means that N optimizer steps are done after it.

        After the last one its state is saved, unless it is already, and all saves are waited for.

        Raises:
            CheckpointError: As from ``restore`` and ``save``.
        """
        if not self._restored:
            self.restore()
        if self._step >= total:
            return
        for step in range(self._step + 1, total + 1):
            yield step
            self._step = step
        self._save(total, "Final", self._metrics)
        self.wait()

    def step(self, step: int, metrics: Metrics | None = None) -> None:
        """Say that ``step`` is done; save if it is time.

        Args:
            metrics: Numbers by name, stored with the snapshot if one is made. Those of rank 0 count.

        Raises:
            Terminated: A pod of the run was asked to terminate, and what could be saved is saved. Let it go.
            FencedError: A later attempt has started. Let it go.
            CheckpointError: The save before failed. It is over then: catch this to train on without it.
        """
        self._require_restored("finish a step")
        self._step, self._metrics = step, metrics or {}
        agreed = self._agreement.vote(
            Vote(
                step,
                trigger=self._trigger(step),
                saving=self._saves.running,
                failed=self._saves.failed or self._fenced() is not None,
                stop=self._watch.stop(),
            )
        )
        _check_together(agreed)
        if self._progress:
            self._progress.step = step
        if agreed.failed:
            self._report_failure(terminating=agreed.stop is not None)
        if agreed.stop:
            self._terminate(step, self._metrics)
        if agreed.trigger and not (agreed.saving and self._skip_while_saving):
            self._save(step, agreed.trigger, self._metrics)

    def save(self, step: int, metrics: Metrics | None = None) -> str:
        """Save now and wait for the commit: when this returns, the snapshot survives the loss of every pod.

        Returns:
            The snapshot's id; under the overwrite policy Skip perhaps that of an earlier one.

        Raises:
            CheckpointExistsError: The step is saved and the policy is Never.
            CheckpointError: See ``step``.
        """
        self._require_restored("save")
        existing = self._save(step, "Manual", metrics or {})
        self.wait()
        return existing or self._agreement.from_rank_0(lambda: self._saved_as(step))

    def wait(self) -> None:
        """Wait for the running save, if there is one.

        Raises:
            CheckpointError: It failed, or this attempt is fenced.
        """
        self._finish_save()
        self._raise_failure()

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
        pods = tuple({pod.uid: pod for pod in self._agreement.gather(self._pod)}.values())
        attempt = self._agreement.from_rank_0(lambda: self._start(pods))
        self._started = True
        if self._session:
            self._progress = ProgressReport(
                self._store, attempt=attempt, pods=pods[:MAX_PODS], fenced=lambda: self._fenced() is not None
            )
            self._progress.start()
        restored = restore(
            self._state,
            session=self._session,
            store=self._store,
            agreement=self._agreement,
            trust=self._trust,
            transfers=self._transfers,
        )
        self._step = restored.step if restored else 0
        self._last = LastSave(self._step, time.monotonic())
        if self._progress:
            self._progress.step = self._step
        self._restored = True
        # Not before: a start has nothing to save, and may simply die of a SIGTERM.
        self._watch.install()
        return restored

    def close(self) -> None:
        """Wait for the running save and let go of everything. Idempotent.

        Raises:
            CheckpointError: The save failed.
        """
        if self._closed:
            return
        try:
            self.wait()
        finally:
            self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # The peers may be anywhere, so no collectives here. A running save needs only their background threads.
        try:
            if not isinstance(error, Terminated):
                self._finish_save()
        finally:
            self._leave()

    # Saving

    def _save(self, step: int, trigger: Trigger, metrics: Metrics) -> str | None:
        """Start a save, after the one before is over. Returns the snapshot that makes it needless, or None."""
        began = time.monotonic()
        self.wait()
        existing, request, decimals = self._agreement.from_rank_0(lambda: self._admit(step, trigger, metrics))
        self._last = LastSave(step, time.monotonic(), request)
        self._eviction_served |= trigger == "Eviction"
        if existing:
            return existing
        failure: CheckpointError | None = None
        staged: dict[str, Any] = {}
        staging_began = time.monotonic()
        try:
            staged = self._saves.stage(self._state.capture(), self._state.modules)
            self.last_staging_seconds = time.monotonic() - staging_began
        except Exception as error:  # noqa: BLE001 - no rank may enter the save's collectives without the others
            failure = CheckpointError(f"save step {step}", "copy to host memory", f"{type(error).__name__}: {error}")
        self._agreement.raise_any(failure)
        target = None
        if self._session:
            blocked = time.monotonic() - began
            target = RunTarget(self._session, Draft(step, trigger, decimals, request, began, blocked))
        self._saves.start(staged, step=step, target=target, began=began)
        return None

    def _report_failure(self, *, terminating: bool) -> None:
        """Raise what went wrong in the background, unless a last save may still make up for it."""
        try:
            self.wait()
        except FencedError:
            raise
        except CheckpointError as error:
            if not terminating:
                raise
            logger.error("the save before SIGTERM failed: %s", error)  # noqa: TRY400 - it says all

    def _terminate(self, step: int, metrics: Metrics) -> NoReturn:
        """Save what still can be saved in the grace period, then leave, on all ranks."""
        failed = False
        while True:
            agreed = self._agreement.vote(Vote(step, saving=self._saves.running, stop=self._watch.stop()))
            act = self._agreement.from_rank_0(partial(self._next_act, agreed, failed=failed))
            if act is LastAct.STOP:
                break
            try:
                if act is LastAct.SAVE:
                    self._save(step, "Termination", metrics)
                assert agreed.stop is not None  # the ranks that were asked do not forget it
                self._saves.wait(max(0.0, agreed.stop.remaining_seconds - RESERVE_SECONDS))
                self._raise_failure()
            except CheckpointError as error:
                logger.error("the last save before the end failed: %s", error)  # noqa: TRY400 - it says all
                failed = True
        if self._saves.running:
            # It cannot commit in time. What is left of the grace period is for cleaning up after it.
            self._saves.cancel()
            self._saves.wait(CLEANUP_SECONDS)
            self._saves.take_error()
        saved = self._agreement.from_rank_0(self._saved_step)
        if self._session and saved == step:
            logger.warning("terminated after step %d, which is saved", step)
        elif self._session:
            logger.warning("terminated after step %d: the steps after %d are lost", step, saved or 0)
        raise Terminated(step, saved)

    # On rank 0

    def _start(self, pods: tuple[PodIdentity, ...]) -> int:
        return self._led.start(
            world_size=self._agreement.world_size, pods=pods, patience_seconds=self._takeover_seconds
        )

    def _admit(self, step: int, trigger: Trigger, metrics: Metrics) -> tuple[str, str, dict[str, str]]:
        """The snapshot that makes the save needless, or empty; the request it serves; the metrics as decimals."""
        decimals = decimal_strings(metrics)
        existing = self._led.admit(step, trigger)
        return existing.id if existing else "", self._led.state.save_request, decimals

    def _next_act(self, agreed: Agreed, *, failed: bool) -> LastAct:
        assert agreed.stop is not None
        return next_act(
            Situation(
                remaining_seconds=agreed.stop.remaining_seconds,
                saving=agreed.saving,
                saved=self._saved_step() == agreed.last,
                wanted=self._led.save_policy.on_termination and not agreed.stop.repeated and not failed,
                expected_seconds=self._saves.last_seconds,
            )
        )

    def _saved_step(self) -> int | None:
        return self._led.saved_step

    def _saved_as(self, step: int) -> str:
        found = self._led.saved(step)
        assert found is not None  # its commit was waited for, without an error
        return found.id

    @property
    def _led(self) -> Session:
        assert self._session is not None  # only rank 0 gets here
        return self._session

    # On every rank

    def _trigger(self, step: int) -> Trigger | None:
        """Why a save is due; only rank 0 knows."""
        if self._session is None or step <= self._last.step:
            return None
        attempt = self._session.state
        if attempt.eviction and not self._eviction_served:
            return "Eviction"
        return due(self._session.save_policy, self._last, step=step, now=time.monotonic(), request=attempt.save_request)

    def _fenced(self) -> FencedError | None:
        return self._session.fenced if self._session and self._session.attempt else None

    def _finish_save(self) -> None:
        """Wait for the running save, or call it off when it would outlast the grace period or is interrupted."""
        try:
            while not self._saves.wait(_LOOK_SECONDS):
                stop = self._watch.stop()
                if stop and stop.remaining_seconds <= RESERVE_SECONDS:
                    self._saves.cancel()
        except KeyboardInterrupt:
            self._saves.cancel()
            raise

    def _raise_failure(self) -> None:
        self._agreement.raise_any(self._saves.take_error() or self._fenced())

    def _require_restored(self, operation: str) -> None:
        if self._closed:
            raise ConfigurationError(operation, self._store.url, "this Checkpointer is closed", "Use a new one.")
        if not self._restored:
            raise ConfigurationError(
                operation, self._store.url, "nothing was restored yet", "Call restore(), or loop over steps(total)."
            )

    def _leave(self) -> None:
        """Let go of everything, without collectives."""
        self._closed = True
        if self._session:
            self._session.stop()
        if self._progress:
            self._progress.stop()
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


def _local_owner(name: str, url: str) -> Owner:
    location = parse_url(url)
    return Owner("local", "local", name or location.path.rpartition("/")[2] or location.bucket)
