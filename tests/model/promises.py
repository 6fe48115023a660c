"""The promises, executable: what may land in the bucket, what must be there, and what an actor may learn.

P1 what was acknowledged stays whole and restorable until a purge is announced. P2 only committed snapshots are
restored, and only what proves whole. P3 nothing is written twice. P4 one winner per number; no fenced commit, no
attempt number twice. P6 what retention must leave. P8 training never silently begins anew. P5 is about several ranks
and P7 about actors that end without help; the latter is asked at the end of every story, see ``machine``. Besides:
what the run did not write stays as it is; only evidence that was looked for twice quarantines; each request acts once;
a run that was given up goes with its data, and no other one does.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from checkpoint_sidecar.core.log import decode
from checkpoint_sidecar.core.replay import advance
from checkpoint_sidecar.core.run import Run, SnapshotState
from model.ledger import AUTOMATIC, HELD, LIVE, PURGED, PURGING, RETIRED, Json, Ledger, Saved
from support.builders import OTHER_OWNER, OWNER

if TYPE_CHECKING:
    from model.turns import Actor
    from model.world import World

LOG_KEY = re.compile(r"_log/(\d{20})\.json")
COMPACTION_KEY = re.compile(r"_log-compacted/(\d{20})-.+")
SAVE_KEY = re.compile(r"step-(\d+)/(\d+)-(\w{8})(?:-([0-9a-f]{8}))?/.+")

GIVEN_UP = (str(OWNER.deleted), str(OTHER_OWNER.deleted))

REST_SECONDS = 60.0
"""Between two looks of one process at a snapshot that it found damaged."""

FENCED_AFTER_SECONDS = 86400.0
"""How long nothing may be heard of an attempt before an operator takes it for dead."""

STAMP_SECONDS = 1.0
"""The store's dates have whole seconds, so a grace period may end up to one early."""


class BrokenPromiseError(AssertionError):
    """What must never happen, happened; ``args`` name the promise and the case."""


def require(holds: object, promise: str, case: str) -> None:
    if not holds:
        raise BrokenPromiseError(promise, case)


@dataclass
class Promises:
    """The judge.

    Attributes:
        ledger: What the log means by the design.
        run: What it means by the code under test.
        damage: When each damaged snapshot was first damaged, in events; and first so that its sizes show it.
        judged: Whether the current writer claims to keep the rules.
        began: When each actor began what it is doing, in events.
        owners: Whose the run was after each entry.
        writers, written_at: By save folder, its writer and when its newest object landed.
        foreign: What others have written under the prefix, by key.
        looks: By actor and snapshot, when it began to read the snapshot back: in events, and in seconds.
        blamed: By snapshot, when an operator last found evidence against it, in events.
        blamed_by: By actor and snapshot, when its look began that found evidence, in seconds.
        repaired: By snapshot, when all its damage was undone, in events.
        asked, taken: By new and previous owner, how often a user asked for the run, and how often it was taken.
        former: Identities of runs that were given up and whose prefix was claimed again.
        listed: When each actor listed the compactions after it last wrote one, in events.
        gone: Compactions that the store lost, and when, in events.
        lost: Since when the log is gone, in events; 0 while it is there.
        tombstone: Number of the last entry of a run that was given up.
        late_of: Whose late request takes effect now, or empty.
        stray: Whether an entry has landed below that lately.
    """

    ledger: Ledger = field(default_factory=Ledger)
    run: Run = field(default_factory=Run)
    events: int = 0
    damage: dict[str, int] = field(default_factory=dict)
    visible_damage: dict[str, int] = field(default_factory=dict)
    began: dict[str, int] = field(default_factory=dict)
    judged: bool = True
    kinds: dict[str, int] = field(default_factory=dict)
    owners: list[str] = field(default_factory=lambda: [""])
    writers: dict[str, str] = field(default_factory=dict)
    written_at: dict[str, float] = field(default_factory=dict)
    foreign: dict[str, bytes] = field(default_factory=dict)
    looks: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    blamed: dict[str, int] = field(default_factory=dict)
    blamed_by: dict[tuple[str, str], float] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    former: set[str] = field(default_factory=set)
    listed: dict[str, int] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    tombstone: int = 0
    late_of: str = ""
    stray: bool = False

    @property
    def given_up(self) -> bool:
        """Whether the run is being deleted, or was, and no other one has begun."""
        return self.ledger.owner in GIVEN_UP

    # What lands in the bucket

    def created(self, key: str, data: bytes, world: World) -> None:
        """An object was created where there was none."""
        self._untouched(key)
        if COMPACTION_KEY.fullmatch(key):
            self.listed.pop(threading.current_thread().name, None)
        if found := LOG_KEY.fullmatch(key):
            entry: Json = json.loads(data)
            number = int(found[1])
            if number < self.tombstone:
                self.stray = True
                return  # its writer was stopped while the run was deleted: no reader sees the entry
            require(not self.lost, "P8", f"entry {number} is written into a log that is gone")
            require(number == self.run.head + 1 == entry["number"], "P4", f"entry {number} lands after {self.run.head}")
            self.events += 1
            self._entry(entry["kind"], entry["body"], world)
            self.run = advance(self.run, [decode(data, number=number, stored_at=world.stamp())])
            self.owners.append(self.ledger.owner)
            self._agreed()
        elif SAVE_KEY.fullmatch(key):
            self.written(key, world)

    def written(self, key: str, world: World) -> None:
        """An object is about to be written or overwritten."""
        self._untouched(key)
        require(not LOG_KEY.fullmatch(key), "P4", f"{key} is written without a condition")
        if SAVE_KEY.fullmatch(key):
            require(world.store.stat(key) is None, "P3", f"{key} is written a second time")
            snapshot = _snapshot_of(key)
            self.writers.setdefault(snapshot, self.late_of or threading.current_thread().name)
            self.written_at[snapshot] = world.waited

    def deleted(self, key: str, actor: Actor | None, world: World) -> None:
        """An object is about to be deleted, by an actor that lives or by a late request."""
        self._untouched(key)
        found = LOG_KEY.fullmatch(key) or COMPACTION_KEY.fullmatch(key)
        if found and not self._replaced(key, world):
            require(int(found[1]) < self.tombstone, "P4", f"{key} is deleted")
        if not SAVE_KEY.fullmatch(key) or self._of_former_run(key):
            return
        snapshot = _snapshot_of(key)
        require(not self.lost or self._began() < self.lost, "P8", f"{key} is deleted, and the log is gone")
        if actor is not None and actor.speaks_for:
            owner = self.owners[actor.head]
            require(owner == actor.speaks_for, "P4", f"{actor.name} deletes {key} of a run that it knows is {owner}'s")
        saved = self.ledger.saved.get(snapshot)
        if saved is not None:
            doomed = saved.state in (PURGING, PURGED)
            require(doomed, "P1", f"{key} of a snapshot that is {saved.state} is deleted")
        elif actor is not None and actor.name != self.writers.get(snapshot, actor.name):
            self._abandoned(key, world)

    def lists_compactions(self) -> None:
        """The asking actor lists the compactions."""
        self.events += 1
        self.listed[threading.current_thread().name] = self.events

    def loses_compaction(self, key: str) -> None:
        """The store loses a compaction."""
        self.events += 1
        self.gone[key] = self.events

    def _replaced(self, key: str, world: World) -> bool:
        """Whether this is a compaction, and its deleter has seen a longer one that holds its entries and more."""
        found = COMPACTION_KEY.fullmatch(key)
        if found is None:
            return False
        seen = self.listed.get(threading.current_thread().name, self.events)
        lately = [each for each, when in self.gone.items() if when > seen]
        there = [info.key for info in world.store.list("_log-compacted/")]
        return any(each > key for each in (*there, *lately) if each.startswith(f"_log-compacted/{found[1]}-"))

    def _untouched(self, key: str) -> None:
        require(key not in self.foreign, "foreign", f"{key}, which the run did not write, is changed")

    def _of_former_run(self, key: str) -> bool:
        """Whether the run of a save was given up."""
        identity = SAVE_KEY.fullmatch(key)[4]  # type: ignore[index]
        return identity in self.former or (self.given_up and identity == self.run.short_identity)

    def _abandoned(self, key: str, world: World) -> None:
        """What an operator deletes of saves without a commit can have none any more, and is old enough."""
        attempt, age = int(SAVE_KEY.fullmatch(key)[2]), world.waited - self.written_at[_snapshot_of(key)]  # type: ignore[index]
        require(not self.ledger.may_speak(attempt), "P1", f"{key} of attempt {attempt}, which may commit, is deleted")
        grace = self.ledger.grace
        require(
            age >= grace - self._early(world), "grace", f"{key} is deleted {age} s after it was written, not {grace} s"
        )

    def undamaged(self, snapshot: str) -> None:
        """All damage of a snapshot was undone."""
        self.events += 1
        self.repaired[snapshot] = self.events
        self.damage.pop(snapshot, None)
        self.visible_damage.pop(snapshot, None)

    def damaged(self, key: str, *, sizes_differ: bool) -> None:
        self.events += 1
        self.damage.setdefault(_snapshot_of(key), self.events)
        if sizes_differ or key.endswith("manifest.json"):
            self.visible_damage.setdefault(_snapshot_of(key), self.events)

    # What actors learn

    def begins(self) -> None:
        """The asking actor begins something: a pass, a restore."""
        self.events += 1
        self.began[threading.current_thread().name] = self.events

    def reads(self, snapshot: str, seconds: float) -> None:
        """The asking actor begins to read a snapshot back."""
        self.events += 1
        self.looks[threading.current_thread().name, snapshot] = self.events, seconds

    def on_behalf(self, name: str, began: int, request: Callable[[], object]) -> None:
        """Let a late request take effect, of an actor that began what it was doing back then."""
        self.began[threading.current_thread().name] = began
        self.late_of = name
        try:
            request()
        finally:
            self.late_of = ""

    def restored(self, attempt: int, snapshot: str, level: str) -> None:
        """An attempt learns that a snapshot was loaded, checked as far as ``level``."""
        require(snapshot in self.ledger.saved, "P2", f"attempt {attempt} restored {snapshot}, which no commit names")
        seen = {"None": {}, "Sizes": self.visible_damage, "Checksums": self.damage}[level]
        known = seen.get(snapshot, self.events + 1)
        require(known > self._began(), "P2", f"attempt {attempt} restored {snapshot}, which was damaged before")

    def began_anew(self, attempt: int) -> None:
        ledger = self.ledger
        fresh = ledger.attempts[attempt].fresh or not ledger.newest or ledger.restore["onMissing"] == "StartFresh"
        require(fresh, "P8", f"attempt {attempt} begins at step 0 although {ledger.newest} was committed")

    def acknowledged(self, snapshot: str, world: World) -> None:
        """An actor learns that its save is a snapshot."""
        require(snapshot in self.ledger.saved, "P1", f"{snapshot} was acknowledged and no commit that counts names it")
        self._whole(self.ledger.saved[snapshot], world)

    def check(self, world: World) -> None:
        """At any moment: everything that may be restored is there, and so is what others wrote."""
        for key, data in self.foreign.items():
            there = world.store.stat(key) is not None and world.store.get(key, max_bytes=1 << 20).data
            require(there == data, "foreign", f"{key}, which the run did not write, is not what it was")
        for saved in self.ledger.saved.values():
            if saved.state in HELD:
                self._whole(saved, world)

    def _whole(self, saved: Saved, world: World) -> None:
        if saved.id not in self.damage and saved.state in HELD and not self.given_up:
            missing = lacking(world, saved.path)
            require(not missing, "P1", f"{saved.id} is {saved.state} and lacks {missing}")

    def _began(self) -> int:
        return self.began.get(threading.current_thread().name, 0)

    def _early(self, world: World) -> float:
        """How much too early an actor may take a time for over: it cannot know of a jump since it read the clock."""
        actor = world.actors.get(threading.current_thread())
        return STAMP_SECONDS + (world.jumps - actor.jumps if actor else world.jumps)

    # What each entry may say

    def _entry(self, kind: str, body: Json, world: World) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        judge = getattr(self, f"_{kind}", None)
        if judge is not None and self.judged:
            judge(body, world)
        if kind == "RunAdopted" and "/".join(body["owner"].values()) in GIVEN_UP:
            self.tombstone = self.run.head + 1
        self.ledger.read(kind, body, world.waited)

    def _RunClaimed(self, _: Json, world: World) -> None:  # noqa: N802 - named like the kind of entry
        """A run begins after one that was given up: nothing of that may be left, and nothing of it counts."""
        if not self.given_up:
            return
        for saved in self.ledger.saved.values():
            left = saved.state != PURGED and world.store.stat(f"{saved.path}/manifest.json") is not None
            require(not left, "P6", f"a run begins although {saved.id} of the one that was given up is left")
        self.former.add(self.run.short_identity)
        self.ledger = Ledger()
        self.taken.clear()

    def _RunAdopted(self, body: Json, _: World) -> None:  # noqa: N802
        owner, previous = ("/".join(body[who].values()) for who in ("owner", "previousOwner"))
        self.taken[owner, previous] += 1
        asked = self.asked[owner, previous]
        require(self.taken[owner, previous] <= asked, "once", f"{owner} takes the run over, asked {asked} times")

    def _AttemptStarted(self, body: Json, _: World) -> None:  # noqa: N802
        ledger, number, request = self.ledger, body["attempt"], body["restoreRequest"]
        require(number not in ledger.attempts, "P4", f"attempt {number} starts a second time")
        require(request not in ledger.consumed, "once", f"attempt {number} serves {request}, which was served")
        pending = ledger.pending.id if ledger.pending else ""
        require(request == pending, "once", f"attempt {number} serves {request!r} while {pending!r} is pending")
        first = next((s.id for s in ledger.to_restore(request) if s.state == LIVE), "")
        require(body["candidate"] == first, "P1", f"attempt {number} announces {body['candidate']!r}, not {first!r}")

    def _RestoreStarted(self, body: Json, _: World) -> None:  # noqa: N802
        self._may_restore(body, LIVE)

    def _SnapshotReinstated(self, body: Json, _: World) -> None:  # noqa: N802
        if body["attempt"] is not None:
            self._may_restore(body, RETIRED)

    def _may_restore(self, body: Json, state: str) -> None:
        number, snapshot = body["attempt"], body["snapshot"]
        require(self.ledger.may_speak(number), "P4", f"attempt {number} continues although it is fenced")
        allowed = [s.id for s in self.ledger.to_restore(self.ledger.attempts[number].request) if s.state == state]
        require(snapshot in allowed, "P2", f"attempt {number} tries {snapshot}, allowed are {allowed}")

    def _RestoreFinished(self, body: Json, _: World) -> None:  # noqa: N802
        number, snapshot = body["attempt"], body["snapshot"]
        require(self.ledger.may_speak(number), "P4", f"attempt {number} continues although it is fenced")
        in_use = self.ledger.attempts[number].in_use
        require(in_use == snapshot, "P6", f"attempt {number} has read {snapshot} and announced {in_use!r}")
        self._evidence(body, snapshot)

    def _SnapshotVerified(self, body: Json, world: World) -> None:  # noqa: N802
        snapshot, actor = body["snapshot"], world.actors.get(threading.current_thread())
        self._evidence(body, snapshot)
        if actor is None and body["level"] == "Checksums":
            return  # it lands late, and when its sender looked is not known
        checksums = body["level"] == "Checksums"
        look = self.looks.get((threading.current_thread().name, snapshot)) if checksums else None
        since, seconds = look or (self._began(), world.seconds)
        damaged = (self.damage if checksums else self.visible_damage).get(snapshot, self.events + 1)
        require(not body["passed"] or damaged > since, "P2", f"{snapshot} is verified and lacks data")
        if body["evidence"] == "None" or not checksums:
            return
        require(since > self.blamed.get(snapshot, 0), "evidence", f"{snapshot} is blamed twice for one moment")
        self.blamed[snapshot] = self.events
        own = threading.current_thread().name, snapshot
        rested = seconds - self.blamed_by.get(own, -REST_SECONDS)
        require(rested >= REST_SECONDS, "evidence", f"{snapshot} is looked at again after {rested} s")
        self.blamed_by[own] = seconds

    def _evidence(self, body: Json, snapshot: str) -> None:
        blamed = body["evidence"] != "None"
        guilty = snapshot in self.damage or self._looked_at(snapshot) < self.repaired.get(snapshot, 0)
        require(not blamed or guilty, "evidence", f"{snapshot} is blamed and whole")

    def _looked_at(self, snapshot: str) -> int:
        """When the asking actor began to look at what it has found, in events."""
        name = threading.current_thread().name
        return self.looks.get((name, snapshot), (self._began(), 0.0))[0]

    def _SnapshotCommitted(self, body: Json, world: World) -> None:  # noqa: N802
        reason = self.ledger.why_rejected(body)
        require(not reason, "P4", f"{body['snapshot']} is committed by {reason}")
        base = self.ledger.attempts[body["attempt"]].base
        twice = body["trigger"] in AUTOMATIC and self.ledger.same_step(base, body["step"])
        require(not twice, "overwrite", f"{body['snapshot']} automatically saves a step again")
        missing = lacking(world, body["path"], body["manifestDigest"])
        require(not missing, "P1", f"{body['snapshot']} is committed and lacks {missing}")

    def _AttemptFenced(self, body: Json, world: World) -> None:  # noqa: N802
        highest = self.ledger.highest
        if highest is None or highest.number != body["attempt"]:
            return
        silent = world.waited - highest.heard_at
        enough = silent >= FENCED_AFTER_SECONDS - self._early(world)
        require(enough, "P7", f"attempt {highest.number} is fenced {silent} s after it was heard")

    def _SnapshotRetired(self, body: Json, world: World) -> None:  # noqa: N802
        saved = self.ledger.saved[body["snapshot"]]
        require(saved.state == LIVE, "P6", f"{saved.id} is retired again")
        self._spared(saved, (LIVE,), world)

    def _PurgeStarted(self, body: Json, world: World) -> None:  # noqa: N802
        saved = self.ledger.saved[body["snapshot"]]
        require(saved.state == RETIRED, "P6", f"{saved.id} is {saved.state} and its purge starts")
        self._spared(saved, HELD, world)
        actor = world.actors.get(threading.current_thread())
        if actor is not None and actor.reads_back:
            compared = [s for s in self.ledger.lineage() if s.state == LIVE and s.compared and not s.failures]
            require(compared, "P6", f"{saved.id} is purged and nothing that stays was read back")
        waited, grace = world.waited - saved.retired_at, self.ledger.policy["retention"]["graceSeconds"]
        enough = waited >= grace - self._early(world)
        require(enough, "grace", f"{saved.id} is purged {waited} s after it was retired, not {grace} s")

    def _spared(self, saved: Saved, counted: tuple[str, ...], world: World) -> None:
        """P6: ``saved`` may go, and what stays is enough."""
        ledger, name = self.ledger, f"{saved.id} goes"
        retention, highest = ledger.policy["retention"], ledger.highest
        require(retention and not retention["dryRun"], "P6", f"{name} although nothing may")
        assert highest is not None
        require(saved.disposition != "Hold", "P6", f"{name} although it is held")
        require(saved.id != highest.in_use, "P6", f"{name} although attempt {highest.number} uses it")
        target = ledger.pending.target if ledger.pending else ""
        require(saved.id != target, "P6", f"{name} although a rollback to it is pending")

        chain = ledger.lineage()
        verified = [s for s in chain if s.state == LIVE and s.proven]
        require(verified, "P6", f"{name} although nothing on the lineage is verified")
        require(saved is not verified[0], "P6", f"{name} although it is the newest verified one")
        replacement_of = {s.replaces: s for s in chain if s.replaces and not s.failures and s.disposition != "Retire"}
        good = [s for s in chain if s.state in counted and not s.failures and s.id not in replacement_of]
        least = retention["keepLast"] or 1
        left = [s for s in good if s is not saved]
        if saved in good:
            require(len(left) >= (retention["keepLast"] or 0), "P6", f"{name} and leaves {len(left)} good ones")
        elif saved.failures and saved in chain and self._too_old(saved, world):
            return
        elif saved.disposition != "Retire" and (saved.failures or saved not in chain):
            require(len(good) >= least, "P6", f"{name}, superseded or damaged, with {len(good)} good ones")
        elif saved.disposition != "Retire" and saved.id in replacement_of:
            replacement = replacement_of[saved.id]
            unproven = replacement in good[:least] and not replacement.proven
            require(not unproven, "P6", f"{name} before {replacement.id}, which replaces it, is verified")

    def _too_old(self, saved: Saved, world: World) -> bool:
        limit = self.ledger.policy["retention"]["maxAgeSeconds"]
        return limit is not None and world.waited - saved.saved_at > limit - self._early(world)

    def _agreed(self) -> None:
        """The code reads the log as the design does."""
        ours, theirs = self.ledger, self.run
        states = {s.id: s.state.value for s in theirs.snapshots.values() if s.state is not SnapshotState.REJECTED}
        readings: list[tuple[str, Any, Any]] = [
            ("P4", {s.id: s.state for s in ours.saved.values()}, states),
            ("P1", ours.newest, theirs.newest or ""),
            ("P4", max(ours.attempts, default=0), theirs.highest_attempt),
            ("once", ours.pending.id if ours.pending else "", theirs.pending.id if theirs.pending else ""),
            ("P6", ours.highest.in_use if ours.highest else "", (theirs.attempt and theirs.attempt.in_use) or ""),
            ("P6", {s.id: s.proven for s in ours.saved.values()}, {i: theirs.snapshots[i].proven for i in states}),
        ]
        for promise, design, code in readings:
            require(design == code, promise, f"the log is read as {code}, the design says {design}")


def lacking(world: World, path: str, digest: str | None = None) -> list[str]:
    """Objects of a save that are not in the bucket as its manifest describes them."""
    stored = world.store.stat(f"{path}/manifest.json")
    if stored is None:
        return ["manifest.json"]
    data = world.store.get(f"{path}/manifest.json", max_bytes=1 << 20).data
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        return ["manifest.json"]
    files = {file["name"]: file["size"] for file in json.loads(data)["files"]}
    infos = {name: world.store.stat(f"{path}/{name}") for name in files}
    return [name for name, size in files.items() if (info := infos[name]) is None or info.size != size]


def _snapshot_of(key: str) -> str:
    found = SAVE_KEY.fullmatch(key)
    return f"{int(found[1])}-{int(found[2])}-{found[3]}" if found else ""
