"""Admits and commits the saves of a ``Checkpointer``. Used on rank 0 only."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.core import attempt as decisions
from checkpoint_sidecar.core import layout, units
from checkpoint_sidecar.core.commits import with_shares
from checkpoint_sidecar.core.errors import (
    CheckpointExistsError,
    ConfigurationError,
    FencedError,
    PrefixClaimedError,
    SharedFilesLostError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.failures import described, raising_portable
from checkpoint_sidecar.core.log import SnapshotCommitted, Trigger
from checkpoint_sidecar.core.manifest import Manifest
from checkpoint_sidecar.core.overwrite import base_of
from checkpoint_sidecar.core.run import Run, SnapshotState
from checkpoint_sidecar.core.sharing import may_share
from checkpoint_sidecar.core.stock_paths import root_of
from checkpoint_sidecar.core.units import moved
from checkpoint_sidecar.engine.pointer import publish_if_possible

logger = logging.getLogger(__name__)


_REFUSALS = (CheckpointExistsError, FencedError, PrefixClaimedError, SharedFilesLostError)
"""Errors of a commit that certainly was not made."""

MOST_METRICS = 32
LONGEST_NAME = 64


def decimal_strings(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return metrics as the log stores them: as the ``repr`` of a float, which is exact.

    Args:
        metrics: Numbers, or tensors of one element, by name.

    Raises:
        ConfigurationError: There are too many, a name is too long, or a value is not a number.
    """
    operation = "record metrics"
    if len(metrics) > MOST_METRICS:
        raise ConfigurationError(
            operation,
            ", ".join(metrics)[:LONGEST_NAME],
            f"there are {len(metrics)}, and a log entry holds at most {MOST_METRICS}",
        )
    for name in metrics:
        if not 0 < len(name) <= LONGEST_NAME:
            raise ConfigurationError("record metric", repr(name), f"a name must have 1 to {LONGEST_NAME} characters")
    try:
        return {name: repr(_number(value)) for name, value in metrics.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(operation, ", ".join(metrics), f"a value is not a number: {error}") from error


def _number(value: Any) -> float:
    detach = getattr(value, "detach", None)  # a loss straight from the model still carries its graph
    return float(detach() if detach else value)


class SaveNotNeeded(CheckpointExistsError):  # noqa: N818 - it ends a save without being a failure
    """The step was saved in the meantime, and the policy keeps that save."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The facts about a save that are known before it uploads.

    Attributes:
        metrics: Decimal strings.
        save_request: The request it serves, or empty.
        began: ``time.monotonic()`` at the start of the copy.
        blocked_seconds: Time for which the training loop waited.
    """

    step: int
    trigger: Trigger
    metrics: Mapping[str, str] = field(default_factory=dict)
    save_request: str = ""
    began: float = 0.0
    blocked_seconds: float = 0.0


class RunTarget:
    """The ``SaveTarget`` of one save.

    Attributes:
        committed: Whether the snapshot is in the log for certain.
    """

    def __init__(self, session: AttemptSession, draft: Draft) -> None:
        self._session = session
        self._draft = draft
        self._tried = ""
        self._entry: SnapshotCommitted | None = None
        self.committed = False

    @property
    def _operation(self) -> str:
        return f"save step {self._draft.step} to"

    def begin(self) -> NewSave:
        """See ``SaveTarget``."""
        with raising_portable(self._operation, self._session.store.url):
            return self._begin()

    def _begin(self) -> NewSave:
        session, draft = self._session, self._draft
        session.log.refresh()
        existing = session.admit(draft.step, draft.trigger)
        if existing is not None:
            raise self._not_needed(existing.id)
        run = session.log.run.short_identity
        folder = layout.SaveFolder(draft.step, session.attempt, layout.new_nonce(), run)
        policy = session.save_policy
        if policy.unchanged != "Share":
            return NewSave(folder, draft.step, policy.unchanged, self._copyable)
        if not root_of(session.store.url):
            # torch's own reader would not find the files.
            return NewSave(folder, draft.step, "Copy", self._copyable)
        base = session.log.run.snapshots.get(base_of(session.state))
        shares = may_share(session.log.run, base, policy.keyframe_every)
        return NewSave(folder, draft.step, "Share", self._copyable if shares else "")

    def commit(self, save: NewSave, manifest: Manifest, digest: str) -> None:
        """See ``SaveTarget``."""
        session, draft = self._session, self._draft
        entry = SnapshotCommitted(
            snapshot=save.snapshot,
            step=save.step,
            attempt=session.attempt,
            path=save.folder.path,
            manifest_digest=digest,
            bytes=manifest.size,
            files=len(manifest.files),
            world_size=manifest.world_size,
            save_request=draft.save_request,
            trigger=draft.trigger,
            metrics=dict(draft.metrics),
            seconds=time.monotonic() - draft.began,
            blocked_seconds=draft.blocked_seconds,
            copied_bytes=save.copied_bytes,
        )

        entry = with_shares(entry, manifest.shares)

        def decide(run: Run) -> SnapshotCommitted | None:
            return decisions.commit(run, entry, overwrite=session.defaults.overwrite)

        self._tried = save.snapshot
        with raising_portable(self._operation, session.store.url):
            if session.log.append(decide) is None:
                raise self._not_needed(session.store.url)
        self.committed = True
        self._entry = entry

    def may_copy_from(self, path: str) -> bool:
        """Return whether objects of a snapshot may be copied into the save: its base, against which nothing is known.

        Args:
            path: The snapshot's folder.
        """
        return bool(path) and path == self._copyable

    @property
    def _copyable(self) -> str:
        """Folder of the snapshot whose files may be copied, or empty."""
        base = self._session.log.run.snapshots.get(base_of(self._session.state))
        return base.commit.path if base is not None and base.live and not base.failures else ""

    def settle(self, error: Exception) -> tuple[Exception | None, bool]:
        """Decide how a failed save ended. Returns the error to report, if any, and whether the save is committed.

        An error after the attempt to commit does not say whether the commit was made; the log does.
        """
        if self._tried and not self.committed and not isinstance(error, _REFUSALS):
            try:
                found = self._session.log.refresh().snapshots.get(self._tried)
            except BaseException as unread:  # noqa: BLE001 - after any error the outcome is unknown
                cause = f"{error}; and the run log cannot be read: {described(unread)}"
                hint = "It may be committed; the next start finds it if it is."
                return UnknownOutcomeError("commit snapshot", self._tried, cause, hint), False
            self.committed = found is not None and found.state is not SnapshotState.REJECTED
            self._entry = found.commit if found else None
        if not self.committed:
            return error, False
        logger.warning("step %d is saved, although its save ended with an error: %s", self._draft.step, error)
        return None, True

    def publish(self) -> None:
        """Log a committed snapshot, call the hooks, and publish it for torch's own reader, if the store lets it.

        Separate from the commit, so that a store that is silent from now on delays no other rank.
        """
        entry = self._entry
        if not self.committed or entry is None:
            return
        logger.info(
            "saved step %d as %s (%s): %s%s%s, training waited %.2f s",
            entry.step,
            entry.snapshot,
            entry.trigger,
            moved(entry.bytes, entry.seconds),
            f", {units.size(entry.copied_bytes)} of it copied by the store" if entry.copied_bytes else "",
            f", {units.size(entry.shared_bytes)} of it shared with earlier snapshots" if entry.shared_bytes else "",
            entry.blocked_seconds,
            extra={
                "operation": "save",
                "step": entry.step,
                "bytes": entry.bytes,
                "copied_bytes": entry.copied_bytes,
                "shared_bytes": entry.shared_bytes,
                "seconds": entry.seconds,
                "blocked_seconds": entry.blocked_seconds,
            },
        )
        self._session.on_commit(entry)
        publish_if_possible(self._session.store, self._session.log, entry.step, outcome="saved")

    def abandon(self, save: NewSave) -> None:
        """Log the failure; the writer deletes the files. See ``SaveTarget``."""
        logger.warning("the save of step %d failed before its commit", save.step)

    def _not_needed(self, subject: str) -> SaveNotNeeded:
        return SaveNotNeeded(f"save step {self._draft.step} as", subject, "the step is saved already")
