"""Random interleavings of everything that reads, writes and deletes shared files, decided by the product's functions.

The log is real: each entry is encoded, decoded and folded as it lands. Everything between two appends of an agent may
interleave with the others. A file is named by the snapshot that stored it, and its name. Agents: attempts of the
library, stale ones too; operators that go on deleting after others have; one of a version that knows no sharing; a
collector of orphans; users that retire anything; and bit rot.

``RULES`` are those of ``core.sharing``. ``without`` takes one away, by replacing the function that enforces it.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
import pytest

from checkpoint_sidecar.core import attempt as library
from checkpoint_sidecar.core import fold, layout, overwrite, purging, removal, sharing, working
from checkpoint_sidecar.core.commits import SnapshotCommitted, SnapshotCommittedSharing, shares_of, with_shares
from checkpoint_sidecar.core.errors import CheckpointExistsError, FencedError, RestoreError, SharedFilesLostError
from checkpoint_sidecar.core.layout import SaveFolder, settled_name
from checkpoint_sidecar.core.lineage import restore_plan
from checkpoint_sidecar.core.log import (
    Body,
    PurgeStarted,
    RestoreFinished,
    RunClaimed,
    SnapshotPurged,
    SnapshotRetired,
    SnapshotVerified,
    StoredEntry,
    Unknown,
    decode,
    encode,
)
from checkpoint_sidecar.core.replay import advance
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.core.shared_files import SharedFiles, names_in, runs_of
from support.builders import BEGINNING, OWNER, nonce_of

File: TypeAlias = tuple[str, str]
"""The id of the snapshot that stored it, and its name."""

NAMES = [settled_name(0, number) for number in range(4)]
NEEDED = (SnapshotState.LIVE, SnapshotState.RETIRED)

RULES = {
    "commit-recheck": 1,
    "purge-keeps": 2,
    "purge-recheck": 3,
    "own-list": 4,
    "keep-only": 5,
    "committed-only": 6,
    "release-again": 7,
    "needs-in-the-log": 8,
    "critical": 9,
    "file-evidence": 10,
    "no-bad-base": 11,
    "count-once": 12,
}


def without(rule: str, patch: pytest.MonkeyPatch) -> None:
    """Take one rule away from the product. Some are taken away in ``World`` instead."""

    def known(tables: sharing.SharingTables, shares: Iterable[SharedFiles]) -> str:
        return "" if all(each.snapshot in tables.snapshots for each in shares) else "it is not a snapshot"

    def any_keep(_: sharing.SharingTables, holder: Snapshot, keep: str) -> bool:
        again = holder.state in (SnapshotState.PURGING, SnapshotState.PURGED) and names_in(keep) < names_in(holder.kept)
        return holder.state is SnapshotState.RETIRED or again

    if rule in ("commit-recheck", "keep-only", "committed-only"):
        unchecked = known if rule == "keep-only" else lambda *_: ""
        for module in (library, overwrite):
            patch.setattr(module, "why_not_shared", unchecked)
    elif rule == "purge-keeps":
        patch.setattr(sharing, "needed_of", lambda *_: frozenset())
    elif rule in ("purge-recheck", "needs-in-the-log"):
        patch.setattr(fold, "may_purge", any_keep)
    elif rule == "release-again":
        for module in (sharing, purging):
            patch.setattr(module, "releasable", lambda _: ())
    elif rule == "file-evidence":
        for module in (sharing, working):
            patch.setattr(module, "users_of", lambda *_: ())
    elif rule == "no-bad-base":
        patch.setattr(library, "damage_among", lambda *_: "")


@dataclass
class Save:
    """A save under way; ``shared`` and ``own`` are its files."""

    draft: SnapshotCommitted
    shared: list[File]
    own: list[File]
    uploaded: bool = False


@dataclass
class Purge:
    """A purge as one operator sees it, and what it believes must stay."""

    snapshot: str
    keep: str
    started: bool = False


@dataclass
class World:
    """The store, the log, and all of their users."""

    random: random.Random
    off: str = ""
    run: Run = field(default_factory=Run)
    old_run: Run = field(default_factory=Run)
    now: dt.datetime = BEGINNING
    store: set[File] = field(default_factory=set)
    manifests: dict[str, tuple[File, ...]] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    rotten: set[File] = field(default_factory=set)
    saves: list[Save] = field(default_factory=list)
    purges: list[Purge] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    names: int = 0
    releases: int = 0

    def on(self, rule: str) -> bool:
        return rule != self.off

    # The log

    def append(self, body: Body) -> None:
        self.now += dt.timedelta(seconds=1)
        number = self.run.head + 1
        data = encode(
            number=number,
            entry_id=f"{number}",
            previous=self.run.head_digest,
            time=self.now,
            writer="model",
            body=body,
        )
        entry = decode(data, number=number, stored_at=self.now)
        if not self.on("critical"):
            entry = msgspec.structs.replace(entry, critical=False)
        self.run = advance(self.run, [entry])
        self.old_run = advance(self.old_run, [_as_before_sharing(entry)])

    def files_of(self, snapshot: Snapshot) -> list[File]:
        """What a snapshot needs, by its commit and its own manifest."""
        shared = [(each.snapshot, name) for each in shares_of(snapshot.commit) for name in names_in(each.files)]
        taken = {name for _, name in shared}
        return [*shared, *((snapshot.id, name) for name in NAMES if name not in taken)]

    def key(self, file: File) -> str:
        step, attempt, nonce = file[0].split("-")
        return f"{SaveFolder(int(step), int(attempt), nonce).path}/{file[1]}"

    # The library

    def start(self) -> None:
        """A new attempt restores: it tries one snapshot after the other."""
        self.append(library.start(self.run, world_size=1, pods=()))
        number, tried, met = self.run.highest_attempt, set[str](), Counter[File]()
        for candidate in restore_plan(self.run, None).candidates:
            if candidate in tried:
                continue
            files = self.files_of(self.run.snapshots[candidate])
            if any(file not in self.store for file in files):
                self.broken["a restore met missing bytes"] += 1
                return
            bad = next((file for file in files if file in self.rotten), None)
            if bad is None:
                size = self.run.snapshots[candidate].commit.bytes
                done = RestoreFinished(number, candidate, True, verified="Checksums", compared_bytes=size)
                self.append(done)
                return
            key = self.key(bad)
            damaged = sharing.key_in_evidence(key)
            self.append(RestoreFinished(number, candidate, False, "ChecksumMismatch", damaged_file=damaged))
            tried |= {candidate, *sharing.users_of(self.run, key)}
            met[bad] += 1
            if met[bad] > 1:
                self.broken["tried two snapshots with the same damaged file"] += 1
                return

    def begin_save(self) -> None:
        attempt = self.run.attempt
        if attempt is None:
            return
        base = self.run.snapshots.get(overwrite.base_of(attempt))
        offered: dict[str, File] = {}
        if base is not None and base.live and not (base.failures and self.on("no-bad-base")):
            offered = {file[1]: file for file in self.files_of(base)}
        if not self.on("committed-only"):
            offered |= {file[1]: file for save in self.saves for file in save.own}
        shared = [file for file in offered.values() if self.random.random() < 0.7]
        self.names += 1
        step, nonce = self.names, nonce_of(self.names)
        identifier = layout.snapshot_id(step, attempt.number, nonce)
        by_holder: dict[str, dict[str, int]] = {}
        for holder, name in shared:
            by_holder.setdefault(holder, {})[name] = 1
        path = SaveFolder(step, attempt.number, nonce).path
        draft = SnapshotCommitted(identifier, step, attempt.number, path, "ab" * 32, len(NAMES), len(NAMES), 1)
        draft = with_shares(draft, tuple(SharedFiles.of(*each) for each in by_holder.items()))
        taken = {name for _, name in shared}
        self.saves.append(Save(draft, shared, [(identifier, name) for name in NAMES if name not in taken]))

    def step_save(self) -> None:
        save = self.random.choice(self.saves)
        if not save.uploaded:
            if self.random.random() < 0.12:  # it dies, and leaves an orphan
                self.saves.remove(save)
                self.store.update(save.own[:1])
                return
            self.store.update(save.own)
            save.uploaded = True
            self.manifests[save.draft.snapshot] = (*save.shared, *save.own)
            return
        self.saves.remove(save)
        known = self.run.snapshots
        damaged = [file for file in save.shared if file[0] in known and file[1] in known[file[0]].damaged]
        try:
            entry = library.commit(self.run, save.draft, overwrite="Never")
        except (CheckpointExistsError, FencedError, RestoreError, SharedFilesLostError):
            return
        if entry is not None:
            self.append(entry)
            if damaged and self.run.snapshots[entry.snapshot].live:
                self.broken["a new snapshot was born damaged, knowingly"] += 1

    # Operators and users

    def retire(self) -> None:
        live = [each.id for each in self.run.snapshots.values() if each.live]
        if len(live) > 1:
            self.append(SnapshotRetired(self.random.choice(live[:-1]), ("Test",)))

    def verify(self) -> None:
        live = [each for each in self.run.snapshots.values() if each.live]
        if live:
            chosen = self.random.choice(live)
            bad = next((file for file in self.files_of(chosen) if file in self.rotten), None)
            check = SnapshotVerified(chosen.id, "Checksums", passed=True)
            if bad is not None:
                damaged = sharing.key_in_evidence(self.key(bad))
                check = SnapshotVerified(chosen.id, "Checksums", False, "ChecksumMismatch", damaged_file=damaged)
            self.append(check)

    def to_keep(self, holder: str) -> str:
        if self.on("needs-in-the-log"):
            return sharing.to_keep(self.run, holder)
        # From manifests, where those that cannot be read count as empty.
        needing = [each for each in self.run.snapshots.values() if each.state in NEEDED and each.id != holder]
        files = (self.manifests.get(each.id, ()) for each in needing if each.id not in self.unreadable)
        return runs_of({name for listed in files for owner, name in listed if owner == holder})

    def plan_purge(self) -> None:
        retired = [each.id for each in self.run.snapshots.values() if each.state is SnapshotState.RETIRED]
        if candidates := sorted({*retired, *sharing.releasable(self.run)}):
            chosen = self.random.choice(candidates)
            self.purges.append(Purge(chosen, self.to_keep(chosen)))

    def step_purge(self) -> None:
        purge = self.random.choice(self.purges)
        if not purge.started:
            self._start_purge(purge)
            return
        listed = self.manifests.get(purge.snapshot) or [(purge.snapshot, name) for name in NAMES]
        keep = names_in(purge.keep)
        own = [file for file in listed if file[0] == purge.snapshot and file[1] not in keep and file in self.store]
        if own:
            self.store.discard(self.random.choice(own))
            return
        self.purges.remove(purge)
        self.manifests.pop(purge.snapshot, None)
        if (done := purging.finish_purge(self.run, purge.snapshot)) is not None:
            self.append(done)

    def _start_purge(self, purge: Purge) -> None:
        entry = removal.start_removal(self.run, purge.snapshot)
        entry = entry or purging.release(self.run, purge.snapshot)
        if entry is not None and not self.on("purge-recheck"):
            entry = PurgeStarted(purge.snapshot, purge.keep)
        elif entry is not None and not self.on("needs-in-the-log"):
            entry = PurgeStarted(purge.snapshot, self.to_keep(purge.snapshot))
        if entry is not None:
            self.releases += self.run.snapshots[purge.snapshot].state is not SnapshotState.RETIRED
            self.append(entry)
        found = self.run.snapshots[purge.snapshot]
        if found.state is not SnapshotState.PURGING:
            self.purges.remove(purge)
            return
        purge.keep, purge.started = found.kept, True

    def old_operator(self) -> None:
        """One of a version that knows no sharing: it deletes all that a snapshot's manifest lists of its own folder."""
        run = self.old_run
        retired = [each.id for each in run.snapshots.values() if each.state is SnapshotState.RETIRED]
        if run.unknown_critical or not retired:
            return
        chosen = self.random.choice(retired)
        self.append(PurgeStarted(chosen))
        self.store -= {(chosen, name) for name in NAMES}
        self.append(SnapshotPurged(chosen))

    def collect_orphans(self) -> None:
        busy = {save.draft.snapshot for save in self.saves}
        known = {each.id for each in self.run.snapshots.values() if each.state is not SnapshotState.REJECTED}
        self.store = {file for file in self.store if file[0] in known or file[0] in busy}

    def rot(self) -> None:
        if self.store and len(self.rotten) < 2:
            self.rotten.add(self.random.choice(sorted(self.store)))

    def lose_sight(self) -> None:
        found = list(self.run.snapshots)
        if found:
            self.unreadable = {self.random.choice(found)} if self.random.random() < 0.6 else set()

    # The promises

    def check(self) -> None:
        for each in self.run.snapshots.values():
            if each.state not in NEEDED:
                continue
            files = self.files_of(each)
            if any(file not in self.store for file in files):
                self.broken["a committed snapshot lost bytes"] += 1
            if not self.on("own-list") and any(file[0] not in self.manifests for file in files):
                self.broken["what a snapshot shares cannot be looked up"] += 1

    def quiesce(self) -> None:
        """Let everything settle. Then nothing leaks, and the account agrees with the store."""
        self.unreadable.clear()
        for _ in range(400):
            if self.saves:
                self.step_save()
            if self.purges:
                self.step_purge()
        for _ in range(60):
            self.plan_purge()
            for _ in range(20):
                if self.purges:
                    self.step_purge()
        self.collect_orphans()
        self.check()
        needing = [each for each in self.run.snapshots.values() if each.state in NEEDED]
        wanted = {file for each in needing for file in self.files_of(each)}
        if self.store - wanted:
            self.broken["bytes that nothing needs are never freed"] += 1
        account = sharing.distinct_bytes(needing)
        if not self.on("count-once"):
            account = sum(each.commit.bytes for each in needing)
        held = sum(
            sharing.left_bytes(self.run, each)
            for each in self.run.snapshots.values()
            if each.state is not SnapshotState.REJECTED
        )
        if not self.broken and {account, held} != {len(self.store)}:
            self.broken["the account differs from the store"] += 1


def _as_before_sharing(entry: StoredEntry) -> StoredEntry:
    """What a version reads that does not know commits of snapshots with shared files."""
    if not isinstance(entry.body, SnapshotCommittedSharing):
        return entry
    return msgspec.structs.replace(entry, body=Unknown("SnapshotCommittedSharing"))


@dataclass
class Explored:
    """What schedules did: how many broke a promise, how often each, and how much was shared."""

    bad: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    shared: int = 0
    purges: int = 0
    releases: int = 0
    refused_by_old: int = 0


def play(number: int, seed: str, off: str = "") -> World:
    """Play one schedule to its end, or until a promise breaks."""
    chance = random.Random(f"{seed}-{number}")
    world = World(chance, off)
    world.append(RunClaimed(OWNER))
    world.start()
    old = chance.random() < 0.3
    for _ in range(chance.randint(20, 60)):
        acts: list[Callable[[], None]] = [world.retire, world.plan_purge, world.collect_orphans]
        if len(world.saves) < 2:
            acts += [world.begin_save] * 2
        if world.saves:
            acts += [world.step_save] * 4
        if world.purges:
            acts += [world.step_purge] * 2
        if old:
            acts.append(world.old_operator)
        if chance.random() < 0.3:
            acts.append(world.start)
        if chance.random() < 0.2:
            acts += [world.rot, world.lose_sight, world.verify]
        chance.choice(acts)()
        world.check()
        if world.broken:
            return world
    world.quiesce()
    return world


def explore(schedules: int, seed: str, off: str = "", *, until_broken: bool = False) -> Explored:
    """Play many schedules."""
    found = Explored()
    for number in range(schedules):
        world = play(number, seed, off)
        snapshots = world.run.snapshots.values()
        found.shared += sum(each.count for snapshot in snapshots for each in shares_of(snapshot.commit))
        found.purges += sum(snapshot.state is SnapshotState.PURGED for snapshot in snapshots)
        found.releases += world.releases
        found.refused_by_old += bool(world.old_run.unknown_critical)
        if world.broken:
            found.bad += 1
            found.broken.update(set(world.broken))
            if until_broken:
                break
    return found
