"""The operator as an actor: the passes of one process, with the shipped plan, memory, scrubber and execution."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from checkpoint_operator.act import rounds
from checkpoint_operator.act.scrubber import Scrubber
from checkpoint_operator.decide import finalizer, plan
from checkpoint_operator.fairness.rate_limit import RateLimit
from checkpoint_operator.gather.memory import Memory
from checkpoint_operator.gather.run_store import RunStore, fault_from, missing_log
from checkpoint_operator.gather.spec_policy import policy_of
from checkpoint_operator.model.observed import Checkpoint, Cluster, Key, Mirror, Observed
from checkpoint_operator.model.outcome import ActionOutcome
from checkpoint_operator.report import status
from checkpoint_operator.report.resources import mirror_name
from checkpoint_sidecar.core.api import CheckpointSpec
from checkpoint_sidecar.core.errors import CheckpointError, StoreError
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.core.selection import Quota
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from model.promises import require
from model.turns import Actor
from model.world import URL, World
from support.builders import BEGINNING, OTHER_OWNER, OWNER
from support.coroutines import result_of

UID = {OWNER: "aaaaaaaa", OTHER_OWNER: "bbbbbbbb"}


@dataclass
class User:
    """What a user has said about a Checkpoint, what its status remembers, and what the last pass left to do.

    Attributes:
        quota: Bytes that its namespace leaves for what rules alone keep; None for no quota.
        objects: How many Checkpoints of this name there were before this one.
        deleted: Whether the Checkpoint is deleted, and waits for its run to be.
        released: How its finalizer went, once it did.
    """

    owner: Owner = OWNER
    spec: dict[str, Any] = field(default_factory=lambda: {"storage": {"url": URL}})
    generation: int = 1
    dispositions: dict[str, str] = field(default_factory=dict)
    releases: dict[str, str] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[object, ...] = ()
    quota: int | None = None
    objects: int = 0
    deleted: bool = False
    released: finalizer.Release | None = None

    @property
    def uid(self) -> str:
        return f"{UID[self.owner]}-{self.objects:04d}"

    def says(self, **fields: Any) -> None:
        self.spec = {**self.spec, **fields}
        self.generation += 1

    def takes_over(self, previous: Owner, world: World, **fields: Any) -> None:
        """Ask for the run of another owner, once."""
        self.says(**fields, storage={"url": URL, "takeOverFrom": str(previous)})
        world.promises.asked[str(self.owner), str(previous)] += 1
        world.tell(f"{self.owner} takes the run of {previous} over")

    def deletes(self, world: World) -> None:
        """Delete the Checkpoint, which waits for its run to be deleted."""
        self.says(deletionPolicy="Delete")
        self.deleted = True
        world.promises.asked[str(self.owner.deleted), str(self.owner)] += 1
        world.tell(f"the Checkpoint of {self.owner} is deleted")

    def creates(self) -> None:
        """A Checkpoint of the same name and spec, after the former one is gone."""
        self.spec = {key: value for key, value in self.spec.items() if key != "deletionPolicy"}
        self.generation, self.objects = 1, self.objects + 1
        self.deleted, self.released = False, None
        self.dispositions, self.releases, self.status, self.left = {}, {}, {}, ()

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            Key(self.owner.namespace, self.owner.name),
            self.uid,
            self.generation,
            "2026-01-01T00:00:00Z",
            msgspec.convert(self.spec, CheckpointSpec),
            self.status,
            finalizers=(finalizer.FINALIZER,) if self.deleted else (),
            deleted_at=BEGINNING if self.deleted else None,
        )

    @property
    def mirrors(self) -> tuple[Mirror, ...]:
        return tuple(
            Mirror(
                mirror_name(self.owner.name, identifier),
                identifier,
                1,
                self.dispositions.get(identifier, "Auto"),  # type: ignore[arg-type]
                release_request=self.releases.get(identifier, ""),
                controller=self.uid,
            )
            for identifier in dict.fromkeys((*self.dispositions, *self.releases))
        )


def operator(
    world: World, user: User, passes: int, *, patient: bool, reads_back: bool = False
) -> Callable[[Actor], None]:
    """Some passes of an operator that has just started.

    Args:
        patient: Whether it waits for the outcome of an append without a limit; otherwise it gives up at once.
        reads_back: Whether it compares the checksums of what stays.
    """

    def body(actor: Actor) -> None:
        actor.speaks_for = str(user.owner)
        actor.reads_back = reads_back
        process = _Process(world, user, actor, patient=patient, reads_back=reads_back)
        for _ in range(passes):
            if user.released is None:
                process.look()

    return body


class _Session(RunStore):
    """A session whose log has the timeout of the story."""

    def __init__(self, writer: str, *, patient: bool) -> None:
        self._timeout_seconds = 1e9 if patient else 0.0
        super().__init__(StoreSettings(URL), writer=writer)

    def forget_log(self) -> None:
        self.log = RunLog(self.store, writer=self._writer, timeout_seconds=self._timeout_seconds)


class _Process:
    """What ``reconcile`` and ``observe`` do around the rounds of a pass, without Kubernetes."""

    def __init__(self, world: World, user: User, actor: Actor, *, patient: bool, reads_back: bool) -> None:
        self._world = world
        self._user = user
        self._actor = actor
        self._patient = patient
        self._memory = Memory()
        # What limits its speed has clocks and waits of its own, and nothing to do with what it finds.
        self._scrubber = Scrubber(RateLimit(1e12), wake=lambda _: None) if reads_back else None

    def look(self) -> None:
        """One pass: look, plan and carry out until nothing is left, report."""
        user = self._user
        self._world.promises.begins()
        try:
            seen = self._act(self._observe())
            if seen.checkpoint.uid != user.uid:
                return  # that Checkpoint is gone
            user.status = status.status_of(seen)
            user.left = plan.store_actions(replace(seen, fault=None))
            released = finalizer.release(seen)
            if released is not None:
                user.released = released
                self._world.tell(f"    the Checkpoint is gone: {released.retained or 'its run is deleted'}")
            elif seen.fault is None:
                self._read_back(seen)
        except StoreError as error:
            self._fails(error)

    def _fails(self, error: CheckpointError) -> None:
        require(self._actor.name in self._world.troubled, "P7", f"{self._actor.name} fails without a cause: {error}")
        self._memory.session = None

    def _observe(self) -> Observed:
        user, memory = self._user, self._memory
        checkpoint, quota, mirrors = user.checkpoint, user.quota, user.mirrors
        assert checkpoint.spec is not None
        memory.note_spec(checkpoint.spec, checkpoint.generation)
        if memory.session is None:
            opened = _Session(self._actor.name, patient=self._patient)
            opened.probe()
            memory.session = opened
        session = memory.session
        fault = run = now = None
        try:
            run = session.read_log()
            fault = missing_log(session, run, checkpoint)
        except StoreError:
            raise
        except CheckpointError as error:
            self._fails(error)
            fault = fault_from(error)
        if fault is not None:
            run = None
        else:
            assert run is not None
            memory.note_run(run)
            now = session.now()
        key = checkpoint.key
        return Observed(
            owner=user.owner,
            checkpoint=checkpoint,
            wall=self._world.wall(),
            policy=policy_of(checkpoint.spec),
            quota=Quota(quota, 0, quota) if quota is not None else None,
            fault=fault,
            run=run,
            now=now,
            cluster=Cluster(mirrors=mirrors),
            memory=memory.known(),
            read_back=self._scrubber.state(key) if self._scrubber else None,
        )

    def _act(self, seen: Observed) -> Observed:
        """The rounds of the shipped code."""

        async def blocking(work: rounds.RoundWork) -> tuple[ActionOutcome, ...]:
            outcomes = work()
            for outcome in outcomes:
                if outcome.failed and outcome.error is not None:
                    self._fails(outcome.error)
            return outcomes

        return result_of(rounds.run(seen, self._memory, blocking=blocking))

    def _read_back(self, seen: Observed) -> None:
        """Hand what is worth reading to the scrubber, and let it read until it rests or has nothing to do."""
        scrubber, session, key = self._scrubber, self._memory.session, seen.checkpoint.key
        if scrubber is None or session is None or seen.read_back is None:
            return
        scrubber.settle(key, seen.read_back.findings)
        wanted = plan.to_read_back(seen)
        known = {finding.check.snapshot for finding in scrubber.state(key).findings}
        for snapshot in wanted:
            if snapshot.id not in known:
                self._world.promises.reads(snapshot.id, self._world.seconds)

        async def read() -> None:
            scrubber.start()
            scrubber.want(key, wanted, session.readable)
            while reading := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in (await asyncio.wait(reading))[0]:
                    task.result()  # what ends the process goes through everything

        asyncio.run(read())
        if trouble := scrubber.state(key).trouble:
            require(self._actor.name in self._world.troubled, "P7", f"{self._actor.name} cannot read: {trouble}")
