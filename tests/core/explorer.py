"""An explorer of interleavings: trainers, operators and a user share one log, driven by the real core.

Every process is a generator. At each ``yield`` another may run, or the process dies; a put may lose its reply, land
late or never. ``World`` holds what the store holds and judges each entry as it lands by the promises in the design,
spelled out here a second time and on purpose not with the functions under test.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial

from checkpoint_sidecar.core import attempt as library
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import CheckpointExistsError, FencedError, RestoreError, RestoreInterrupted
from checkpoint_sidecar.core.log import (
    AttemptStarted,
    Body,
    PurgeStarted,
    RestoreFinished,
    RollbackRequested,
    RunClaimed,
    RunConfigured,
    SnapshotCommitted,
    SnapshotPurged,
    SnapshotReinstated,
    SnapshotRetired,
    SnapshotVerified,
    StoredEntry,
    decode,
    encode,
)
from checkpoint_sidecar.core.policy import OverwritePolicy, Policy, RestoreMode, RestorePolicy, RetentionPolicy
from checkpoint_sidecar.core.purging import purge_due
from checkpoint_sidecar.core.replay import advance
from checkpoint_sidecar.core.retention import judge
from checkpoint_sidecar.core.run import Run, SnapshotState
from support.builders import BEGINNING, OBJECT_UID, OWNER, nonce_of

FILES = ("__0_0.distcp", "__1_0.distcp", "manifest.json")
HELD = (SnapshotState.LIVE, SnapshotState.RETIRED)
Process = Generator[None]


class BrokenPromiseError(AssertionError):
    """What must never happen, happened; ``args`` name the promise and the case."""


@dataclass
class Rules:
    """Protocol rules outside the core that the processes keep; a test switches them off to see the promises fall."""

    recompute: bool = True
    settle: bool = True
    evidence_only: bool = True
    purge_started_first: bool = True
    restore_first: bool = True


@dataclass
class World:
    """The store, the clock, and the judge."""

    random: random.Random
    rules: Rules
    overwrite: OverwritePolicy
    keep_last: int
    grace_hours: int
    run: Run = field(default_factory=Run)
    entries: list[StoredEntry] = field(default_factory=list)
    late: list[tuple[int, bytes]] = field(default_factory=list)
    files: dict[str, set[str]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    now: dt.datetime = BEGINNING
    names: int = 0

    def fresh(self) -> str:
        self.names += 1
        return nonce_of(self.names)

    # The store

    def put(self, number: int, data: bytes) -> bool:
        """Put-if-absent; False when the caller does not learn what became of it."""
        if self.random.random() < 0.06:
            fate = self.random.choice(["landed", "late", "lost"])
            if fate == "landed":
                self.land(number, data)
            elif fate == "late":
                self.late.append((number, data))
            return False
        self.land(number, data)
        return True

    def land(self, number: int, data: bytes) -> None:
        if number <= self.run.head:
            return
        entry = decode(data, number=number, stored_at=self.now)
        before, self.run = self.run, advance(self.run, [entry])
        self.entries.append(entry)
        self.judge(before, entry.body)

    def whole(self, snapshot: str) -> bool:
        return len(self.files.get(snapshot, ())) == len(FILES) and snapshot not in self.damaged

    def require(self, holds: bool, promise: str, case: str) -> None:
        if not holds:
            raise BrokenPromiseError(promise, case)

    # The promises

    def chain(self, run: Run) -> list[str]:
        """The lineage by ``parent`` links, newest first."""
        found, name = [], run.newest
        while name:
            found.append(name)
            name = run.snapshots[name].commit.parent
        return found

    def judge(self, before: Run, body: Body | object) -> None:
        if isinstance(body, AttemptStarted):
            self.require(body.attempt not in before.attempts, "P4", f"attempt {body.attempt} started twice")
            carried = {s.commit.restore_request for s in before.snapshots.values() if s.state.value != "Rejected"}
            self.require(not body.restore_request or body.restore_request not in carried, "once", body.restore_request)
        elif isinstance(body, SnapshotCommitted):
            accepted = self.run.snapshots[body.snapshot].state is SnapshotState.LIVE
            self.require(not accepted or body.attempt == max(before.attempts), "P4", f"{body.snapshot} after its fence")
            self.require(not accepted or self.whole(body.snapshot), "P2", f"{body.snapshot} committed without its data")
            self.require(
                not (accepted and not body.parent and before.newest) or body.restore_request.startswith("fresh-"),
                "P8",
                f"{body.snapshot} silently begins anew",
            )
        elif isinstance(body, PurgeStarted):
            self._judge_purge(before, body.snapshot)
        for snapshot in self.run.snapshots.values():
            intact = snapshot.id in self.damaged or self.whole(snapshot.id)
            self.require(not snapshot.live or intact, "P2", f"{snapshot.id} is a candidate without its data")
            self.require(not snapshot.failures or snapshot.id in self.damaged, "evidence", f"{snapshot.id} is whole")

    def _judge_purge(self, before: Run, snapshot: str) -> None:
        chain = [before.snapshots[name] for name in self.chain(before)]
        verified = [s.id for s in chain if s.live and not s.failures and s.verified != "None"]
        replaced = [s.commit.replaces for s in chain if s.verified != "None" and not s.failures]
        # A retired one counts: it can be reinstated as long as it is not purged.
        good = [s.id for s in chain if s.state in HELD and not s.failures and s.id not in replaced]
        highest = before.attempts[max(before.attempts)]
        self.require(bool(verified), "P6", f"{snapshot} is purged though nothing is verified")
        self.require(snapshot not in verified[:1], "P6", f"{snapshot} is purged, the newest verified one")
        enough = len(set(good) - {snapshot}) >= self.keep_last or snapshot in replaced
        self.require(enough, "P6", f"{snapshot} is purged, fewer than keepLast remain")
        self.require(snapshot != highest.in_use, "P6", f"{snapshot} is purged while it is in use")
        target = before.pending.snapshot if before.pending else None
        self.require(snapshot != target, "P6", f"{snapshot} is purged though a rollback to it is pending")

    def damage(self) -> None:
        """A snapshot rots, before or after it was verified; two do at most, never the last whole one."""
        whole = [s for s in self.chain(self.run) if self.run.snapshots[s].state in HELD and self.whole(s)]
        if len(whole) > 1 and len(self.damaged) < 2:
            target = self.run.pending.snapshot if self.run.pending else None
            self.damaged.add(target if target in whole else self.random.choice(whole))


def append(world: World, compute: Callable[[Run], Body | None]) -> Generator[None, None, Body | None]:
    """The append of the design: recompute on conflict, settle unknown outcomes at the same number."""
    name, body = world.fresh(), None
    while True:
        yield
        run = world.run
        if body is None or world.rules.recompute:
            body = compute(run)
        if body is None:
            return None
        number = run.head + 1
        data = encode(
            number=number, entry_id=name, previous=run.head_digest, time=world.now, writer="explorer", body=body
        )
        yield
        while not world.put(number, data) and world.run.head < number:
            if not world.rules.settle and isinstance(body, SnapshotCommitted):
                return None
            yield
        if world.entries[number - 1].id == name:
            return body


def trainer(world: World, saves: int) -> Process:
    """One start of the process group: restore, then save some steps."""
    try:
        started = yield from append(world, lambda run: library.start(run, world_size=2, pods=()))
        if not isinstance(started, AttemptStarted):
            return
        number = started.attempt
        if world.rules.restore_first and not (yield from _restore(world, number)):
            return
        base = world.run.attempts[number].restored
        step = world.run.snapshots[base].step if base else 0
        for each in range(step if world.overwrite != "Never" and base else step + 1, step + 1 + saves):
            yield from _save(world, number, each)
    except (FencedError, RestoreError, RestoreInterrupted, CheckpointExistsError):
        return


def _restore(world: World, number: int) -> Generator[None, None, bool]:
    tried: list[str] = []
    while True:
        entry = yield from append(world, lambda run: library.announce(run, number, tried))
        if entry is None:
            return _nothing_left(world, number, tried)
        assert hasattr(entry, "snapshot")
        snapshot = entry.snapshot
        tried.append(snapshot)
        whole = snapshot not in world.damaged
        for file in FILES * 3:  # reading takes long
            yield
            if file not in world.files[snapshot]:
                whole = False
                fenced = number != world.run.highest_attempt
                world.require(fenced, "P6", f"{snapshot} vanished under attempt {number}, which was reading it")
        interrupted = world.random.random() < 0.1
        size = world.run.snapshots[snapshot].commit.bytes
        outcome = RestoreFinished(number, snapshot, restored=True, verified="Checksums", compared_bytes=size)
        restored = whole and not interrupted
        if not restored:
            blamed = not interrupted or not world.rules.evidence_only
            outcome = RestoreFinished(number, snapshot, False, "ChecksumMismatch" if blamed else "None")
        yield from append(world, partial(library.finish_restore, outcome=outcome))
        if restored or interrupted:
            return restored


def _nothing_left(world: World, number: int, tried: list[str]) -> bool:
    plan = library.plan_for(world.run, number)
    if not plan.fresh_start and not plan.request:
        left = [s for s in world.chain(world.run) if world.run.snapshots[s].state in HELD and world.whole(s)]
        world.require(not set(left) - set(tried), "P8", f"attempt {number} is stuck although {left} are whole")
    return plan.fresh_start


def _save(world: World, number: int, step: int) -> Process:
    admission = library.admit_save(world.run, number, step, trigger="Manual", overwrite="Never")
    if isinstance(admission, library.AlreadySaved):
        return
    nonce = world.fresh()
    draft = SnapshotCommitted(
        snapshot=layout.snapshot_id(step, number, nonce),
        step=step,
        attempt=number,
        path=layout.SaveFolder(step, number, nonce).path,
        manifest_digest=hashlib.sha256(nonce.encode()).hexdigest(),
        bytes=1,
        files=2,
        world_size=2,
    )
    world.files[draft.snapshot] = set()
    for file in FILES:
        yield
        world.files[draft.snapshot].add(file)
    committed = yield from append(world, lambda run: library.commit(run, draft, overwrite="Never"))
    if committed is None:
        # Not saved, as far as this process knows: it cleans up after itself.
        world.files[draft.snapshot].clear()
    else:
        accepted = world.run.snapshots[draft.snapshot].state is not SnapshotState.REJECTED
        world.require(accepted, "P1", f"{draft.snapshot} was acknowledged and is rejected")


def operator(world: World, passes: int) -> Process:
    """Verify, retire and reinstate, purge, collect orphans; every decision is made again at its append."""
    for _ in range(passes):
        yield
        run = world.run
        for name in [s.id for s in run.snapshots.values() if s.live and s.verified == "None" and not s.failures][-1:]:
            whole = True
            for file in FILES:
                yield
                whole = whole and file in world.files[name]
            check = SnapshotVerified(name, "Checksums", whole and name not in world.damaged, "ChecksumMismatch")
            yield from append(world, partial(_record, check))
        verdict = judge(world.run, now=world.now)
        for name in [*verdict.retire, *verdict.keep]:
            yield from append(world, partial(_move, world, name))
        for name in purge_due(judge(world.run, now=world.now))[:1]:
            yield from _purge(world, name)
        yield from _collect_orphans(world)


def _record(check: SnapshotVerified, run: Run) -> Body | None:
    return check if run.snapshots[check.snapshot].live else None


def _move(world: World, name: str, run: Run) -> Body | None:
    verdict, state = judge(run, now=world.now), run.snapshots[name].state
    if state is SnapshotState.LIVE and name in verdict.retire:
        return SnapshotRetired(name, verdict.retire[name])
    return SnapshotReinstated(name) if state is SnapshotState.RETIRED and name in verdict.keep else None


def _purge(world: World, name: str) -> Process:
    def start(run: Run) -> PurgeStarted | None:
        due = run.snapshots[name].state is SnapshotState.RETIRED and name in purge_due(judge(run, now=world.now))
        return PurgeStarted(name) if due else None

    if world.rules.purge_started_first:
        yield from append(world, start)
        if world.run.snapshots[name].state is not SnapshotState.PURGING:
            return
    for file in FILES:
        yield
        world.files[name].discard(file)
    purging = SnapshotState.PURGING
    yield from append(world, lambda run: SnapshotPurged(name) if run.snapshots[name].state is purging else None)


def _collect_orphans(world: World) -> Process:
    """Data of lower attempts that no commit names. A commit of theirs can only be rejected from now on."""
    run = world.run
    for name in list(world.files):
        if int(name.split("-")[1]) < run.highest_attempt and name not in run.snapshots:
            yield
            world.files[name].clear()


def user(world: World) -> Process:
    """Asks for a rollback or a fresh start, or takes the latter back."""
    pick, request = world.random.random(), f"rollback-{world.fresh()}"
    mode: RestoreMode = world.random.choice(["None", "Latest"])

    def rollback(run: Run) -> RollbackRequested | None:
        held = [s.id for s in run.snapshots.values() if s.state in HELD]
        return RollbackRequested(request, held[int(pick * len(held))]) if held else None

    def configure(run: Run) -> RunConfigured:
        return _configure(run, world, mode)

    yield from append(world, world.random.choice([rollback, configure]))


def _configure(run: Run, world: World, mode: RestoreMode) -> RunConfigured:
    generation = run.configured[1] + 1 if run.configured else 1
    retention = RetentionPolicy(keep_last=world.keep_last, grace_seconds=3600.0 * world.grace_hours)
    policy = Policy(overwrite=world.overwrite, retention=retention, restore=RestorePolicy(mode=mode))
    return RunConfigured(OBJECT_UID, generation, policy)


def _whatever_is_there(body: Body, _: Run) -> Body:
    return body


def explore(seed: int, *, rules: Rules, requests: int = 0, steps: int = 700) -> World:
    """One random run of everything.

    Args:
        requests: How often the user asks for something else than Latest, at most.

    Raises:
        BrokenPromiseError: A promise fell.
    """
    chance = random.Random(seed)
    world = World(
        chance,
        rules,
        overwrite=chance.choice(["Never", "Skip", "Replace"]),
        keep_last=chance.choice([1, 2]),
        grace_hours=chance.choice([0, 2]),
    )
    processes: list[Iterator[None]] = []
    for beginning in (RunClaimed(OWNER), _configure(world.run, world, "Latest")):
        for _ in append(world, partial(_whatever_is_there, beginning)):
            pass
    spawn: dict[str, list[Callable[[], Process]]] = {
        "trainer": [lambda: trainer(world, 3)] * 7,
        "operator": [lambda: operator(world, 6)] * 4,
        "user": [lambda: user(world)] * requests,
    }
    for _ in range(steps):
        dice = chance.random()
        if dice < 0.04 and (waiting := [kind for kind, left in spawn.items() if left]):
            processes.append(spawn[chance.choice(waiting)].pop()())
        elif dice < 0.08:
            world.now += dt.timedelta(hours=1)
        elif dice < 0.085:
            world.damage()
        elif dice < 0.1 and world.late:
            world.land(*world.late.pop(chance.randrange(len(world.late))))
        elif processes:
            process = chance.choice(processes)
            dies = dice > 0.99
            if dies or next(process, "done") == "done":
                processes.remove(process)
    return world
