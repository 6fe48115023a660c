"""What users and the world do to one run: specs, wishes, damage, other clusters, and writers without rules."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import (
    Body,
    PurgeStarted,
    RollbackRequested,
    SnapshotCommitted,
    SnapshotReinstated,
    SnapshotRetired,
    encode,
)
from model.ledger import PURGED, PURGING, Saved
from model.machine import ENOUGH_CALLS, MOST_ACTORS, MOST_LAUNCHED, NEWEST_FIRST, RETENTION, TURNS, Machine
from model.operators import User, operator
from support.builders import OTHER_OWNER, OWNER

MOST_DAMAGED = 3


class Protocol(Machine):
    """One run, from its first start on."""

    # The world

    @precondition(lambda self: len(self.world.promises.damage) < MOST_DAMAGED and len(self._held()) > 1)
    @rule(
        which=st.lists(NEWEST_FIRST, min_size=1, max_size=MOST_DAMAGED, unique=True),
        name=st.sampled_from(["__0_0.distcp", "manifest.json"]),
        lost=st.booleans(),
    )
    def objects_rot(self, which: list[int], name: str, lost: bool) -> None:
        for each in which[: MOST_DAMAGED - len(self.world.promises.damage)]:
            key = f"{self._held_one(each).path}/{name}"
            found = self.world.store.stat(key)
            if found is not None:
                self.world.damage(key, None if lost else b"?" * found.size)
                self.world.tell(f"{key} is {'lost' if lost else 'changed'}")
                self.explored.happened["damaged objects"] += 1

    @precondition(lambda self: self._compactions())
    @rule(which=NEWEST_FIRST, lost=st.booleans())
    def a_compaction_rots(self, which: int, lost: bool) -> None:
        keys = self._compactions()
        key = keys[-1 - which % len(keys)]
        self.world.tell(f"{key} is {'lost' if lost else 'changed'}")
        if lost:
            self.world.store.delete([key])
            self.world.promises.loses_compaction(key)
        else:
            self.world.store.corrupt(key, b"?" * 100)

    def _compactions(self) -> list[str]:
        return [info.key for info in self.world.store.list(layout.COMPACTION_FOLDER)]

    # The users

    @rule(
        change=st.one_of(
            st.fixed_dictionaries({"overwritePolicy": st.sampled_from(["Never", "Skip", "Replace"])}),
            st.fixed_dictionaries({"retention": RETENTION}),
            st.fixed_dictionaries({"mode": st.sampled_from(["None", "Latest"])}),
            st.fixed_dictionaries({"verify": st.sampled_from(["Checksums", "Sizes"])}),
        ),
        told=st.booleans(),
    )
    def a_user_changes_the_spec(self, change: dict[str, Any], told: bool) -> None:
        restore = {key: change[key] for key in ("mode", "verify") if key in change}
        rest = {key: change[key] for key in change if key not in restore}
        self._says(told, **rest, restore={**self.user.spec.get("restore", {}), **restore})

    @precondition(lambda self: self._held())
    @rule(
        which=NEWEST_FIRST, wish=st.sampled_from(["rollback", "rollback", "Hold", "Retire", "Auto"]), told=st.booleans()
    )
    def a_user_means_one_snapshot(self, which: int, wish: str, told: bool) -> None:
        snapshot = self._held_one(which).id
        if wish == "rollback":
            self.requests += 1
            rollback = {"request": f"rollback-{self.requests}", "to": "Snapshot", "snapshot": snapshot}
            self._says(told, restore={**self.user.spec.get("restore", {}), "rollback": rollback})
        else:
            self.user.dispositions[snapshot] = wish
            self.world.tell(f"a user sets {snapshot} to {wish}")

    @precondition(lambda self: self._suspected())
    @rule(which=NEWEST_FIRST)
    def a_user_releases_one_from_quarantine(self, which: int) -> None:
        suspected = self._suspected()
        snapshot = suspected[-1 - which % len(suspected)].id
        self.requests += 1
        self.user.releases[snapshot] = f"release-{self.requests}"
        self.world.tell(f"a user releases {snapshot}")

    def _suspected(self) -> list[Saved]:
        return [saved for saved in self._held() if saved.failures]

    @rule(bytes_=st.sampled_from([None, 0, 400]))
    def the_quota_changes(self, bytes_: int | None) -> None:
        self.user.quota = bytes_
        self.world.tell(f"the quota leaves {bytes_} bytes for what rules keep")

    @precondition(lambda self: len(self.alive) < MOST_ACTORS and self.launched < MOST_LAUNCHED)
    @rule(stranger=st.booleans(), turns=TURNS)
    def an_operator_of_other_configuration_joins(self, stranger: bool, turns: int) -> None:
        """One that still has the former spec, as during a roll-out, or that of a cluster that owns nothing here."""
        user = User(OTHER_OWNER) if stranger else self.former
        actor = self._cast("operator", operator(self.world, user, 2, patient=True))
        self.explored.happened["operators of other configuration"] += 1
        self._turns(actor, turns)

    @precondition(lambda self: self.world.promises.ledger.owner == str(OWNER) and self.launched > 5)
    @rule(turns=st.sampled_from([10, 60]))
    def another_cluster_takes_over(self, turns: int) -> None:
        self.other.takes_over(
            OWNER, self.world, **{key: self.user.spec[key] for key in self.user.spec if key != "storage"}
        )
        self._turns(self._cast("operator", operator(self.world, self.other, 2, patient=True)), turns)

    def _says(self, told: bool, **fields: Any) -> None:
        """A user edits the spec, and an operator passes at once or does not."""
        self.former = copy.deepcopy(self.user)
        self.user.says(**fields)
        self.world.tell(f"a user changes {fields}")
        self.explored.happened["specs"] += 1
        if told and len(self.alive) < MOST_ACTORS and self.launched < MOST_LAUNCHED:
            self._turns(self._operator(1, patient=True), ENOUGH_CALLS)

    @precondition(lambda self: self.world.promises.ledger.attempts)
    @rule(attempt=st.integers(1, 9), again=st.booleans())
    def somebody_without_rules_commits(self, attempt: int, again: bool) -> None:
        """A writer of another version, say, that appends what it should not. It must not count."""
        ledger = self.world.promises.ledger
        number = min(attempt, max(ledger.attempts))
        lineage = ledger.lineage()
        step = lineage[0].step if lineage and again else 7777
        folder = layout.SaveFolder(step, number, self.world.fresh())
        body = SnapshotCommitted(
            snapshot=layout.snapshot_id(step, number, folder.nonce),
            step=step,
            attempt=number,
            path=folder.path,
            manifest_digest="0" * 64,
            bytes=1,
            files=1,
            world_size=1,
        )
        if ledger.why_rejected(json.loads(msgspec.json.encode(body))):
            self._against_the_rules(body)

    @precondition(lambda self: any(s.state in (PURGING, PURGED) for s in self.world.promises.ledger.saved.values()))
    @rule(which=NEWEST_FIRST, what=st.sampled_from(["reinstates", "rolls back to", "retires", "purges"]))
    def somebody_without_rules_recalls(self, which: int, what: str) -> None:
        """A purge that has begun is final, whatever a later entry says."""
        gone = [s.id for s in self.world.promises.ledger.saved.values() if s.state in (PURGING, PURGED)]
        snapshot = gone[-1 - which % len(gone)]
        entries: dict[str, Body] = {
            "reinstates": SnapshotReinstated(snapshot),
            "rolls back to": RollbackRequested(f"rogue-{self.world.fresh()}", snapshot),
            "retires": SnapshotRetired(snapshot, ("Rogue",)),
            "purges": PurgeStarted(snapshot),
        }
        self._against_the_rules(entries[what])

    def _against_the_rules(self, body: Body) -> None:
        run = self.world.promises.run
        self.world.tell(f"a rogue writer breaks the rules: {body}")
        self.explored.happened["rogue entries"] += 1
        number, name = run.head + 1, f"rogue-{self.world.fresh()}"
        data = encode(
            number=number, entry_id=name, previous=run.head_digest, time=self.world.now(), writer="rogue", body=body
        )
        self.world.promises.judged = False
        with self._judging():
            self.world.create(layout.log_key(number), data)
        self.world.promises.judged = True
