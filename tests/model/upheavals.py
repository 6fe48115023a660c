"""What happens to a run over its whole life: deletion and a new beginning, other people's data, and changes of hands.

The operators of half the stories read snapshots back, so damage is looked at a second time, and may be undone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.log import Body, Owner
from checkpoint_sidecar.store.base import Store
from model.actors import Outcome, Save, trainer
from model.ledger import LIVE
from model.machine import ENOUGH_CALLS, MOST_ACTORS, MOST_LAUNCHED, NEWEST_FIRST, TURNS, WHO
from model.operators import User, operator
from model.promises import SAVE_KEY, BrokenPromiseError, require
from model.protocol import Protocol
from model.turns import Actor
from model.world import CHANGED
from support.builders import OTHER_OWNER, OWNER
from support.others import WAYS, note

PLACES = st.sampled_from(["step-100/", "step-300/", "step-400/", "step-7/", "nested/", "step-100/deeper/", "eval 1/"])
MOST_FOREIGN = 24


class Upheavals(Protocol):
    """A prefix, and all that comes and goes under it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads_back = False
        self.misled: set[str] = set()

    @initialize(reads_back=st.booleans())
    def operators_read_back(self, reads_back: bool) -> None:
        self.reads_back = reads_back

    def _operator(self, passes: int, *, patient: bool) -> Actor:
        return self._operator_of(self._user(), passes, patient=patient)

    def _operator_of(self, user: User, passes: int, *, patient: bool = True) -> Actor:
        body = operator(self.world, user, passes, patient=patient, reads_back=self.reads_back)
        return self._cast("operator", body)

    def _cast(self, kind: str, body: Callable[[Actor], None]) -> Actor:
        actor = super()._cast(kind, body)
        if self.world.promises.given_up or self.user.deleted or self.other.deleted:
            self.world.troubled.add(actor.name)  # what it reads may be deleted while it does
        return actor

    def _against_the_rules(self, body: Body) -> None:
        super()._against_the_rules(body)
        if self.world.promises.given_up:
            self.world.troubled |= {actor.name for actor in self.alive}

    def _raise(self, actor: Actor) -> None:
        super()._raise(actor)
        if self.world.promises.stray:
            # Another one that was stopped just as long would continue where the first one wrote, and notice nothing.
            self.world.promises.stray = False
            for other in [other for other in self.alive if other.head < self.world.promises.tombstone]:
                if other is not actor:
                    self._kill(other)

    def _user(self) -> User:
        return self.user if self._owner() == OWNER else self.other

    def _owner(self) -> Owner:
        mine = self.world.promises.ledger.owner in (str(OTHER_OWNER), str(OTHER_OWNER.deleted))
        return OTHER_OWNER if mine else OWNER

    @property
    def _has_room(self) -> bool:
        return len(self.alive) < MOST_ACTORS and self.launched < MOST_LAUNCHED

    @property
    def _owned(self) -> bool:
        return self.world.promises.ledger.owner in (str(OWNER), str(OTHER_OWNER))

    # Deletion, and a new beginning

    @precondition(lambda self: self._owned and self.launched > 2 and self._has_room and not self._user().deleted)
    @rule(turns=TURNS, two=st.booleans())
    def the_checkpoint_is_deleted(self, turns: int, two: bool) -> None:
        user = self._user()
        user.deletes(self.world)
        self.former = copy.deepcopy(user)
        self.explored.happened["deletions"] += 1
        # What they read may be deleted while they do.
        self.world.troubled |= {actor.name for actor in self.alive}
        for _ in range(1 + two):
            if self._has_room:
                self._turns(self._operator_of(user, 3), turns * 5)

    @precondition(lambda self: self.user.released or self.other.released)
    @rule()
    def a_checkpoint_is_created_again(self) -> None:
        for user in (self.user, self.other):
            if user.released is not None:
                self._creates(user)

    def _creates(self, user: User) -> None:
        user.creates()
        self.former = copy.deepcopy(user)
        self.world.tell(f"{user.owner} creates a Checkpoint again")
        self.explored.happened["new Checkpoints"] += 1

    # A log that vanishes

    @precondition(lambda self: self._owned and self.world.promises.ledger.newest and self._has_room)
    @rule(compacted=st.booleans(), turns=TURNS)
    def the_log_is_gone_for_a_while(self, compacted: bool, turns: int) -> None:
        """Nothing is begun, written or deleted because of it, and the run continues when the log comes back."""
        promises = self.world.promises
        for actor in list(self.alive):
            # What was sent already, or is in this moment, may be written; its writer hears that it does not count.
            if actor.next_call.startswith("create _log") or actor.name in self.world.troubled or not actor.head:
                self._kill(actor)
        self.world.troubled |= {actor.name for actor in self.alive}
        folders = (layout.LOG_FOLDER, layout.COMPACTION_FOLDER)[: 1 + compacted]
        kept = [self.world.take_away(folder) for folder in folders]
        self.world.tell(f"{' and '.join(folders)} vanish")
        self.explored.happened["vanished logs"] += 1
        promises.events += 1
        promises.lost = promises.events
        for actor in list(self.alive):
            self._turns(actor, turns)
        outcome = Outcome()
        start = self._cast("trainer", trainer(self.world, outcome, [Save()], owner=self._owner()))
        self.world.troubled.add(start.name)
        self._turns(start, ENOUGH_CALLS)
        require(outcome.error is not None and not outcome.anew, "P8", "a start does not notice that the log is gone")
        look = self._operator_of(self._user(), 2)
        self.world.troubled.add(look.name)
        self._turns(look, ENOUGH_CALLS)
        for objects in kept:
            for key, data in objects.items():
                self.world.store.put(key, data)
        promises.lost = 0
        self.world.tell("the log is restored")

    # Other people's data

    @precondition(lambda self: self._owned and len(self.world.promises.foreign) < MOST_FOREIGN)
    @rule(write=st.sampled_from(WAYS), place=PLACES)
    def others_save_under_the_prefix(self, write: Callable[[Store, str], None], place: str) -> None:
        # Not over what the run has published or is about to: that no store can keep apart.
        step = (
            int(place.removeprefix("step-").rstrip("/")) if place.startswith("step-") and place.count("/") == 1 else 0
        )
        known = any(key.startswith(place) and key not in self.world.promises.foreign for key in self._keys())
        if step and (known or step in {saved.step for saved in self.world.promises.ledger.saved.values()}):
            place += "deeper/"
        self._others(write, place)

    @precondition(lambda self: self._held() and len(self.world.promises.foreign) < MOST_FOREIGN)
    @rule(which=NEWEST_FIRST)
    def somebody_leaves_a_note_in_a_snapshot(self, which: int) -> None:
        self._others(note, f"{self._held_one(which).path}/")

    def _others(self, write: Callable[[Store, str], None], place: str) -> None:
        self.world.others(lambda store: write(store, place))
        self.world.tell(f"others write into {place}: {write.__name__}")
        self.explored.happened["others' data"] += 1

    def _keys(self) -> list[str]:
        return [info.key for info in self.world.store.list()]

    # Changing hands, any number of times

    @precondition(lambda self: self._owned and self.launched > 3 and self._has_room)
    @rule(turns=st.sampled_from([10, 60, ENOUGH_CALLS]))
    def the_other_cluster_takes_over(self, turns: int) -> None:
        holder = self._user()
        asking = self.other if holder is self.user else self.user
        if asking.deleted or holder.deleted:
            return
        asking.says(storage={"url": holder.spec["storage"]["url"]})
        actor = self._operator_of(asking, 3)
        done = asking.status
        for _ in range(turns):  # an operator that runs sees that the field is set anew
            if actor.ended or asking.status is not done:
                break
            self._turns(actor, 1)
        alone = not self.alive or self.alive == [actor]
        asking.takes_over(holder.owner, self.world)
        self._turns(actor, turns)
        served = self.world.promises.ledger.owner == str(asking.owner)
        if actor.ended and alone and actor.name not in self.world.troubled:
            require(served, "once", f"{asking.owner} asks for the run of {holder.owner} and does not get it")
        self.explored.happened["changes of hands"] += served

    # Second looks

    @precondition(lambda self: self._owned and any(s.id in self.world.promises.damage for s in self._held()))
    @rule()
    def damage_is_undone(self) -> None:
        for saved in self._held():
            if saved.id in self.world.promises.damage:
                self.world.repair(saved.id, saved.path)
                self.world.tell(f"the objects of {saved.id} are restored")
        self.explored.happened["repairs"] += 1

    @precondition(lambda self: self.alive)
    @rule(who=WHO, turns=TURNS)
    def a_reply_is_changed_on_its_way(self, who: int, turns: int) -> None:
        actor = self._pick(who)
        self._up_to(actor, "read step-")
        # Once for each: what is found three times over counts as found.
        if SAVE_KEY.fullmatch(actor.next_call.removeprefix("read ")) and actor.name not in self.misled:
            self.misled.add(actor.name)
            actor.fate = CHANGED
            self.world.tell(f"    of the next request {CHANGED}:")
            self.explored.happened[CHANGED] += 1
            self._turns(actor, turns)

    # The end

    def _ask(self) -> None:
        for user in (self.user, self.other):
            if user.deleted:
                self._ask_for_the_deletion(user)
        if self._half_deleted():
            # The store did not answer, so the Checkpoint went without its data and said so. A person deletes that.
            self.world.promises.check(self.world)
            return
        super()._ask()
        if self.reads_back:
            self._ask_for_second_looks()

    def _half_deleted(self) -> bool:
        """Return whether the run is given up, and more of its log than the tombstone is left."""
        promises = self.world.promises
        first = layout.log_key(promises.tombstone)
        return promises.given_up and any(info.key < first for info in self.world.store.list(layout.LOG_FOLDER))

    def _ask_for_the_deletion(self, user: User) -> None:
        if user.released is None:
            self._alone(self._operator_of(user, 8))
        require(user.released is not None, "P7", f"the Checkpoint of {user.owner} is never released: {user.left}")
        self._creates(user)

    def _ask_for_second_looks(self) -> None:
        """Require that every snapshot that stays, unless quarantined, was read back and cleared of suspicion."""
        retention = self.world.promises.ledger.policy["retention"]
        if retention and retention["dryRun"]:
            return  # what would go is live, and not worth reading
        for _ in range(4 + 2 * len(self._held())):  # after damage, an operator rests
            self.world.seconds += 3600
            self._alone(self._operator_of(self._user(), 4 + len(self._held())))
            if not self._unsettled():
                return
        raise BrokenPromiseError("evidence", f"{self._unsettled()} are never read back, or stay suspected")

    def _unsettled(self) -> list[str]:
        ledger = self.world.promises.ledger
        stays = (saved for saved in ledger.lineage() if saved.state == LIVE and not ledger.quarantined(saved))
        return [saved.id for saved in stays if not saved.compared or saved.failures]
