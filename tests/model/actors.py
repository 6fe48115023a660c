"""The processes: rank 0 of a trainer, and the operator. What they decide and write is the real code's doing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import crc32c
import msgspec

from builders import OTHER_OWNER, OWNER
from checkpoint_operator import execute, plan, status
from checkpoint_operator.memory import Memory
from checkpoint_operator.model import Checkpoint, Key, Mirror, Observed, Quota
from checkpoint_operator.resources import mirror_name
from checkpoint_operator.storage import Session as OperatorSession
from checkpoint_operator.translate import policy_of
from checkpoint_sidecar.core import layout, manifest
from checkpoint_sidecar.core.api import CheckpointSpec
from checkpoint_sidecar.core.errors import (
    CheckpointError,
    CheckpointExistsError,
    FencedError,
    PrefixClaimedError,
    RestoreError,
    RestoreInterrupted,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.core.log import Owner, PodIdentity, Trigger
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.core.policy import OverwritePolicy, SavePolicy
from checkpoint_sidecar.engine.compared import Compared
from checkpoint_sidecar.engine.verify import verify_snapshot
from checkpoint_sidecar.store.parts import write_object
from checkpoint_sidecar.store.runlog import RunLog
from checkpoint_sidecar.store.settings import StoreSettings
from checkpoint_sidecar.training.saves import NewSave
from checkpoint_sidecar.training.session import Defaults, Session
from checkpoint_sidecar.training.target import Draft, RunTarget
from model.promises import require
from model.turns import Actor
from model.world import World, connect

REFUSALS = (CheckpointExistsError, FencedError, PrefixClaimedError)
"""Errors of a commit that certainly did not happen: the only ones after which the writer deletes its files."""

ROUNDS = 6
"""Of one pass of the operator, as in its reconciler."""

UID = {OWNER: "aaaaaaaa-0000", OTHER_OWNER: "bbbbbbbb-0000"}


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
class User:
    """What a user has said about a Checkpoint, what its status remembers, and what the last pass left to do.

    Attributes:
        quota: Bytes that its namespace leaves for what rules alone keep; None for no quota.
    """

    owner: Owner = OWNER
    spec: dict[str, Any] = field(default_factory=lambda: {"storage": {"url": "s3://bucket/run"}})
    generation: int = 1
    dispositions: dict[str, str] = field(default_factory=dict)
    releases: dict[str, str] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[object, ...] = ()
    quota: int | None = None

    def says(self, **fields: Any) -> None:
        self.spec = {**self.spec, **fields}
        self.generation += 1


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
    world: World, outcome: Outcome, saves: Sequence[Save], *, owner: Owner = OWNER, overwrite: OverwritePolicy = "Never"
) -> Callable[[Actor], None]:
    """One start of the process group: restore, then some saves."""

    def body(actor: Actor) -> None:
        session = Session(connect(world), owner, Defaults(SavePolicy(), overwrite))
        try:
            pods = (PodIdentity(actor.name, f"uid-{actor.name}"),)
            outcome.attempt = session.start(world_size=1, pods=pods, patience_seconds=0)
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
        except StoreError as error:
            # What the store never saw may fail; that an outcome is unknown must not be said while it can be settled.
            require(actor.name in world.troubled, "P7", f"{actor.name} fails without a cause: {error}")
            unsettled = isinstance(error, UnknownOutcomeError) and "_log/" in str(error)
            require(not unsettled, "P1", f"{actor.name} reports {error}")
            outcome.error = error

    return body


def _restore(world: World, session: Session, outcome: Outcome) -> int:
    """The step it goes on from."""
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
            compared = Compared(candidate.manifest)
            if candidate.verify == "Checksums":
                compared.flags[:] = b"\1" * len(compared.flags)
        except CheckpointError as error:
            session.failed(candidate.snapshot, error)
            continue
        session.restored(candidate, seconds=0.0, compared=compared)
        promises.restored(session.attempt, candidate.snapshot, candidate.verify)
        outcome.restored = candidate.snapshot
        return candidate.step


def _save(world: World, session: Session, draft: Draft, outcome: Outcome) -> None:
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


def _upload(session: Session, new: NewSave, written: list[str]) -> tuple[manifest.Manifest, str]:
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


def _delete(session: Session, written: list[str]) -> None:
    with contextlib.suppress(StoreError):
        session.store.delete(written)


def operator(world: World, user: User, passes: int, *, patient: bool) -> Callable[[Actor], None]:
    """Some passes: look, plan and carry out until nothing is left, report.

    Args:
        patient: Whether it waits for the outcome of an append for ever; else it gives up at once.
    """

    def body(actor: Actor) -> None:
        actor.speaks_for = str(user.owner)
        session: OperatorSession | None = None
        memory = Memory()
        for _ in range(passes):
            world.promises.begins()
            try:
                if session is None:
                    session = memory.session = _session(user, actor, patient)
                seen = _observe(user, session, memory)
                for _ in range(ROUNDS):
                    planned = plan.store_actions(seen)
                    if not planned:
                        break
                    outcomes = execute.carry_out(planned, session, owner=user.owner)
                    if errors := [done.error for done in outcomes if done.error]:
                        require(actor.name in world.troubled, "P7", f"{actor.name} fails without a cause: {errors[0]}")
                        session = None
                        break
                    now = session.now()
                    memory.note_outcomes(outcomes, now)
                    seen = replace(seen, run=session.log.run, now=now, **memory.known())
                user.status = status.status_of(seen)
                user.left = plan.store_actions(seen)
            except StoreError as error:
                require(actor.name in world.troubled, "P7", f"{actor.name} fails without a cause: {error}")
                session = None

    return body


def _session(user: User, actor: Actor, patient: bool) -> OperatorSession:
    session = OperatorSession(StoreSettings("s3://bucket/run"), writer=actor.name)
    session.log = RunLog(session.store, writer=actor.name, patience_seconds=1e9 if patient else 0.0)
    session.probe()
    return session


def _observe(user: User, session: OperatorSession, memory: Memory) -> Observed:
    spec = msgspec.convert(user.spec, CheckpointSpec)
    generation, dispositions = user.generation, dict(user.dispositions)
    run = session.log.refresh()
    now = session.now()
    key = Key(user.owner.namespace, user.owner.name)
    return Observed(
        owner=user.owner,
        checkpoint=Checkpoint(key, UID[user.owner], generation, "2026-01-01T00:00:00Z", spec, user.status),
        wall=now,
        policy=policy_of(spec),
        quota=Quota(user.quota, 0, user.quota) if user.quota is not None else None,
        run=run,
        now=now,
        mirrors=tuple(
            Mirror(
                mirror_name(key.name, identifier),
                identifier,
                1,
                dispositions.get(identifier, "Auto"),  # type: ignore[arg-type]
                release_request=user.releases.get(identifier, ""),
                controller=UID[user.owner],
            )
            for identifier in dict.fromkeys((*dispositions, *user.releases))
        ),
        **memory.known(),
    )
