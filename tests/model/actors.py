"""Rank 0 of a trainer as an actor. What it decides and writes is the real code's doing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import crc32c

from checkpoint_sidecar.attempt.run_save import NewSave
from checkpoint_sidecar.attempt.save_target import Draft, RunTarget
from checkpoint_sidecar.attempt.session import AttemptSession, Defaults
from checkpoint_sidecar.core import layout, manifest
from checkpoint_sidecar.core.errors import (
    CheckpointError,
    CheckpointExistsError,
    FencedError,
    LogError,
    PrefixClaimedError,
    RestoreError,
    RestoreInterrupted,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.log import Owner, PodIdentity, Trigger
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.core.policy import OverwritePolicy, SavePolicy
from checkpoint_sidecar.engine.compared import ComparedBytes
from checkpoint_sidecar.engine.verify import verify_snapshot
from checkpoint_sidecar.store.common.parts import write_object
from model.promises import require
from model.turns import Actor
from model.world import World, connect
from support.builders import OWNER

REFUSALS = (CheckpointExistsError, FencedError, PrefixClaimedError)
"""Errors of a commit that certainly did not happen: the only ones after which the writer deletes its files."""


@dataclass(frozen=True)
class Save:
    """A save a trainer will try.

    Attributes:
        further: Steps beyond the one it stands at; 0 saves the step it restored again.
    """

    further: int = 100
    trigger: Trigger = "Schedule"
    loss: str = ""


@dataclass
class Outcome:
    """What a trainer came to, for the questions at the end of a story."""

    attempt: int = 0
    restored: str = ""
    anew: bool = False
    skipped: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    error: CheckpointError | None = None


def launch(world: World, name: str, body: Callable[[Actor], None]) -> Actor:
    """Start an actor; it stops before its first call."""

    def known(actor: Actor) -> None:
        world.actors[threading.current_thread()] = actor
        body(actor)

    return Actor(name, known)


def trainer(
    world: World,
    outcome: Outcome,
    saves: Sequence[Save],
    *,
    owner: Owner = OWNER,
    overwrite: OverwritePolicy = "Never",
    floor: int = 0,
) -> Callable[[Actor], None]:
    """One start of the process group: restore, then some saves.

    Args:
        floor: Number of a log entry that is known to exist.
    """

    def body(actor: Actor) -> None:
        session = AttemptSession(connect(world), owner, Defaults(SavePolicy(), overwrite), log_floor=floor)
        try:
            pods = (PodIdentity(actor.name, f"uid-{actor.name}"),)
            outcome.attempt = session.start(world_size=1, pods=pods, timeout_seconds=0)
            step = _restore(world, session, outcome)
            for save in saves:
                session.log.refresh()
                if session.fenced:
                    raise session.fenced
                step += save.further
                if step:
                    metrics = {"loss": save.loss} if save.loss else {}
                    _save(world, session, Draft(step, save.trigger, metrics), outcome)
        except (FencedError, RestoreError, RestoreInterrupted) as error:
            outcome.error = error
        except PrefixClaimedError as error:
            require(world.promises.ledger.owner != str(owner), "P4", f"{actor.name} is refused its own prefix")
            outcome.error = error
        except LogError as error:
            gone = world.promises.tombstone or actor.name in world.troubled
            require(gone, "P7", f"{actor.name} fails, and its log was never gone: {error}")
            outcome.error = error
        except StoreError as error:
            # What the store never saw may fail; that an outcome is unknown must not be said while it can be settled.
            require(actor.name in world.troubled, "P7", f"{actor.name} fails without a cause: {error}")
            unsettled = isinstance(error, UnknownOutcomeError) and "_log/" in str(error)
            require(not unsettled, "P1", f"{actor.name} reports {error}")
            outcome.error = error

    return body


def _restore(world: World, session: AttemptSession, outcome: Outcome) -> int:
    """Restore as a training loop does, and return the step from which it continues."""
    promises = world.promises
    while True:
        candidate = session.next_candidate()
        outcome.skipped = list(session.skipped)
        if candidate is None:
            promises.began_anew(session.attempt)
            outcome.anew = True
            return 0
        promises.begins()
        commit = session.log.run.snapshots[candidate.snapshot].commit
        try:
            verify_snapshot(session.store, commit, level=candidate.verify)
            compared = ComparedBytes(candidate.manifest)
            if candidate.verify == "Checksums":
                compared.flags[:] = b"\1" * len(compared.flags)
        except CheckpointError as error:
            session.failed(candidate.snapshot, error)
            continue
        # What follows takes requests of its own, and until then the run may be deleted.
        promises.restored(session.attempt, candidate.snapshot, candidate.verify)
        session.restored(candidate, seconds=0.0, compared=compared)
        outcome.restored = candidate.snapshot
        return candidate.step


def _save(world: World, session: AttemptSession, draft: Draft, outcome: Outcome) -> None:
    """What the storage writer does on rank 0, without torch: upload, describe, commit, and tidy up as it does."""
    target = RunTarget(session, draft)
    try:
        new = target.begin()
    except CheckpointExistsError:
        return
    written: list[str] = []
    try:
        listing, digest = _upload(session, new, written)
    except StoreError:
        target.abandon(new)
        _delete(session, written)
        return
    try:
        target.commit(new, listing, digest)
    except REFUSALS as error:
        _delete(session, written)
        if isinstance(error, CheckpointExistsError):
            return
        raise
    world.promises.acknowledged(new.snapshot, world)
    outcome.saved.append(new.snapshot)
    world.tell(f"    {new.snapshot} is acknowledged")
    target.publish()


def _upload(session: AttemptSession, new: NewSave, written: list[str]) -> tuple[manifest.Manifest, str]:
    files = []
    for name in ("__0_0.distcp", layout.METADATA_NAME, layout.STOCK_METADATA_NAME):
        data = f"{name} of {new.snapshot}".encode()
        if name == layout.STOCK_METADATA_NAME:
            data += Origin(new.folder.run, new.snapshot).encode()
        written.append(f"{new.folder.path}/{name}")
        write_object(session.store, written[-1], data)
        checksum = crc32c.crc32c(data)
        files.append(manifest.File(name, len(data), checksum, checksum.to_bytes(4, "big")))
    listing = manifest.Manifest(
        new.snapshot, new.step, new.folder.attempt, world_size=1, files=tuple(sorted(files, key=lambda f: f.name))
    )
    encoded = manifest.encode(listing)
    written.append(new.folder.manifest)
    write_object(session.store, written[-1], encoded)
    return listing, manifest.digest(encoded)


def _delete(session: AttemptSession, written: list[str]) -> None:
    with contextlib.suppress(StoreError):
        session.store.delete(written)
