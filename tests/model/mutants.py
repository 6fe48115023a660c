"""The rules of the protocol, each switched off in the real code by the smallest change that does it."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from checkpoint_operator.act import erasure, execute, rounds
from checkpoint_operator.act.scrubber import Scrubber
from checkpoint_operator.decide import appends, plan
from checkpoint_sidecar.attempt.session import AttemptSession
from checkpoint_sidecar.core import (
    attempt,
    belongings,
    fold,
    lineage,
    log,
    purging,
    requests,
    selection,
    sharing,
    working,
)
from checkpoint_sidecar.core.belongings import Belongings
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.engine import confirm, pointer
from checkpoint_sidecar.runs.clock import StoreClock
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.runs.purge import delete_save
from model import stories
from model.machine import Machine
from model.protocol import Protocol
from model.stories import Story
from model.upheavals import Upheavals

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """One line of the code under test, changed.

    Attributes:
        rule: Of the design, 1 to 11; 0 for fencing and fresh starts, which come before them.
        wrong: What the changed code does.
        caught_by: A seed with which the machine meets it within a few stories; or, where chance takes hundreds, the
            story that tells the case step by step.
        function: Where.
        old, new: Text of the function.
        machine: Of the seed; the smaller one gets further within as many stories.
    """

    rule: int
    wrong: str
    caught_by: int | Story
    function: Function
    old: str
    new: str
    machine: type[Machine] = Protocol

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        """Replace the code itself, so that modules that imported the function by name run it too."""
        source = textwrap.dedent(inspect.getsource(self.function)).removeprefix("@property\n")
        assert source.count(self.old) == 1, f"{self.function.__qualname__} has changed: adapt the mutant {self.wrong!r}"
        module = sys.modules[self.function.__module__]
        changed: dict[str, Any] = {}
        exec("from __future__ import annotations\n" + source.replace(self.old, self.new), vars(module), changed)
        patch.setattr(self.function, "__code__", changed[self.function.__name__].__code__)


def _getter(owner: type, name: str) -> Function:
    getter: Function = inspect.getattr_static(owner, name).fget
    return getter


_DELETES_FIRST = """\
    path = session.log.run.snapshots[action.snapshot].commit.path
    session.store.delete([info.key for info in session.store.list(path)])
    session.log.append(lambda run: start_purge"""
_GIVES_UP = """\
    if not self._polite and lost > 1:
        raise StoreError("append to the run log", self.store.url, "the race was lost twice")
    if self._polite:"""
_NEWER_AS_WELL = "(*ancestors(run, request.snapshot), *lineage(run))"
_COMMITS = 'type(body).__name__ == "SnapshotCommitted"'

MUTANTS = (
    # Fencing, and what may begin
    Mutant(0, "a fenced attempt commits", 1, Run.may_commit, "attempt == self.highest_attempt >", "attempt >"),
    Mutant(0, "an adoption fences no attempt", 101, fold._adopted, "fenced_up_to=run.highest_attempt,", ""),
    Mutant(0, "training silently begins anew", 2, lineage.restore_plan, '"Auto" and not run.ever_committed', '"Auto"'),
    Mutant(
        0,
        "a sign of life does not keep an attempt from being fenced",
        stories.an_attempt_that_commits_while_it_is_taken_for_dead_is_not_fenced,
        appends.fence,
        ' or (attempt.last_commit or "") != action.commit',
        "",
    ),
    Mutant(
        0,
        "a purge continues in the run of another owner",
        stories.a_purge_ends_where_the_run_changes_hands,
        execute._being_purged,
        " or run.owner != owner",
        "",
    ),
    Mutant(
        0,
        "a purge looks at the owner only before the repair of the pointer",
        stories.a_purge_ends_where_its_operator_learns_of_the_change_of_hands,
        execute._purge,
        "    if snapshot := _being_purged(session.log.run, action, owner):\n        delete_data",
        "    if snapshot:\n        delete_data",
    ),
    # 1: after a conflict the whole entry is computed again
    Mutant(1, "an entry outlives a lost race", 100, RunLog.append, "compute(run)", "body if lost else compute(run)"),
    Mutant(
        1,
        "a retirement is not judged again",
        100,
        purging.retire,
        "judge(run, now=now, terms=terms).retire.get(snapshot)",
        '("Planned",)',
    ),
    # 2: an unknown outcome is settled
    Mutant(2, "an unknown outcome is a failure", 3, RunLog._occupy, "self._settle(put_and_look)", "put_and_look()"),
    Mutant(2, "the winner is taken for oneself", 100, RunLog.append, "if occupant.id == entry_id:", "if True:"),
    Mutant(2, "oneself is taken for the winner", 1, RunLog.append, "== entry_id:", f"== entry_id and not {_COMMITS}:"),
    # 3: what is read is announced before, and in use until the first commit
    Mutant(3, "a start does not say what it reads", 1, attempt.start, "plan.candidates[0] if plan.candidates else", ""),
    Mutant(3, "an announcement is forgotten", 2, fold._restore_started, "in_use=body.snapshot", ""),
    Mutant(
        3,
        "what is in use goes",
        stories.a_snapshot_in_use_outlives_the_request_it_was_restored_for,
        lineage.in_use,
        "return ",
        "return None and ",
    ),
    # 4: a request acts once, and leads to its target or an ancestor
    Mutant(4, "a request is never consumed", 1, fold._committed, "None if served else run.pending", "run.pending"),
    Mutant(
        4,
        "a rollback falls back to newer ones",
        103,
        lineage.restore_plan,
        "ancestors(run, request.snapshot)",
        _NEWER_AS_WELL,
    ),
    Mutant(
        4, "a start carries no request", 1, attempt.start, "restore_plan(run, run.pending)", "restore_plan(run, None)"
    ),
    Mutant(4, "the target of a rollback goes", 100, lineage.rollback_target, "return ", "return None and "),
    # 5: only evidence counts against a snapshot
    Mutant(
        5,
        "a failing store is evidence in a restore",
        132,
        AttemptSession.failed,
        "else NO_EVIDENCE",
        'else "MissingObject"',
    ),
    Mutant(
        5,
        "a failing store is evidence in a check",
        102,
        execute.verify,
        "except CorruptSnapshotError as error:",
        "except Exception as error:\n        error.evidence = 'MissingObject'",
    ),
    Mutant(
        5,
        "failures count without evidence",
        101,
        working.Working.record_check,
        "passed and check.evidence != NO_EVIDENCE",
        "passed",
    ),
    # 6: what retention must leave
    Mutant(6, "unverified counts as verified", 1, _getter(Snapshot, "proven"), "self.verified != NOT_CHECKED and ", ""),
    Mutant(
        6,
        "the newest verified one goes",
        stories.the_newest_verified_snapshot_stays_while_the_newer_one_cannot_be_checked,
        selection.newest_verified,
        "return ",
        "return () and ",
    ),
    Mutant(
        6, "damaged ones count for keepLast", 1002, selection.case_of, "s.failures == 0 and s.id not in", "s.id not in"
    ),
    Mutant(6, "superseded ones go at once", 132, selection.case_of, "enough=", "enough=True or "),
    Mutant(
        6,
        "a superseded one is a fallback",
        13,
        lineage.restore_plan,
        "lineage(run) if",
        "tuple(reversed(run.snapshots.values())) if",
    ),
    # 7: replacing is one commit, and automatic saves replace nothing
    Mutant(
        7,
        "a replaced one goes unverified",
        stories.a_replaced_snapshot_stays_until_its_replacement_is_verified,
        selection.replaced_by_unverified,
        "if replacement and",
        "if False and",
    ),
    Mutant(7, "an automatic save saves again", 1, attempt.admit_save, "trigger in AUTOMATIC or ", ""),
    Mutant(
        7, "a commit does not look at the policy", 1, attempt.commit, "admission = ", 'admission = Admitted("") or '
    ),
    # 8: PurgeStarted comes first, and is the point of no return; before it, everything can come back
    Mutant(
        8,
        "data goes before PurgeStarted",
        1,
        execute._purge,
        "    session.log.append(lambda run: start_purge",
        _DELETES_FIRST,
    ),
    Mutant(
        8,
        "a rollback recalls what is gone",
        1,
        fold._rollback,
        "(SnapshotState.LIVE, SnapshotState.RETIRED)",
        "SnapshotState",
    ),
    Mutant(8, "what was never retired is purged", 1, sharing.may_purge, "is SnapshotState.RETIRED", "is not None"),
    Mutant(8, "a retired one never comes back", 109, attempt.announce, "in plan.last_resort", "in ()"),
    # 9: grace, on the store's clock
    Mutant(
        9,
        "writers' clocks measure the grace",
        100,
        log.decode,
        "stored_at=stored_at",
        "stored_at=dt.datetime.fromisoformat(envelope.time)",
    ),
    Mutant(
        9,
        "the store's clock is read early",
        stories.nothing_is_deleted_a_moment_before_its_grace_period_ends,
        StoreClock.now,
        "seconds=time.monotonic() - self.read",
        "seconds=time.monotonic() - self.read + 5.0",
    ),
    Mutant(
        9,
        "a clock that was set back is not noticed",
        stories.nothing_is_deleted_early_by_a_clock_that_was_set_back,
        execute.carry_out,
        "session.read_clock()",
        "pass",
    ),
    Mutant(9, "there is no grace", 1, purging.purge_at, "seconds=policy.grace_seconds", "seconds=0"),
    # 10: the stock pointer is derived and repaired
    Mutant(
        10,
        "a publisher does not look again",
        stories.of_two_publishers_the_one_that_writes_last_corrects_itself,
        pointer.publish,
        "if _identifier(published_for(run, step)) == _identifier(wanted):\n            return",
        "return",
    ),
    Mutant(
        10,
        "a purge leaves the pointer",
        stories.no_stock_pointer_shows_what_is_being_deleted,
        execute._purge,
        "repair(session.store, session.log, folder.step)",
        "pass",
    ),
    Mutant(10, "only the newest pointer is repaired", 12, plan._pointers, "(*wanted, *shown)", "[*wanted][:1]"),
    Mutant(
        10,
        "no pointer follows a rollback",
        stories.pointers_follow_a_rollback_to_another_branch,
        plan._pointers,
        "wanted.get(step) != shown.get(step)",
        "step not in shown",
    ),
    # 11: training wins
    Mutant(11, "training gives up after lost races", 122, RunLog._give_way, "    if self._polite:", _GIVES_UP),
    # What is not the run's
    Mutant(
        0,
        "what looks like a save is the run's",
        stories.what_others_wrote_outlives_the_run_and_its_deletion,
        Belongings.save_of,
        "proven = ",
        "proven = True or ",
        Upheavals,
    ),
    Mutant(
        0,
        "any stock pointer is the run's",
        stories.what_others_wrote_outlives_the_run_and_its_deletion,
        pointer._is_own,
        "if origin is not None:",
        "if True:\n        return True\n    if origin is not None:",
        Upheavals,
    ),
    Mutant(
        0,
        "a deletion takes a folder with all that is in it",
        stories.what_others_wrote_outlives_the_run_and_its_deletion,
        delete_save,
        "for name in names if name not in keep]",
        "for name in names] + [info.key for info in store.list(f'{folder.path}/')]",
        Upheavals,
    ),
    # Deletion, and a new beginning
    Mutant(
        0,
        "a deletion begins with the log",
        stories.a_deletion_that_was_interrupted_is_ended_before_the_next_run_begins,
        erasure.erase,
        "    listed = ",
        "    _delete_log(session, run)\n    listed = ",
        Upheavals,
    ),
    Mutant(
        0,
        "a deletion takes the tombstone along",
        stories.a_deletion_that_was_interrupted_is_ended_before_the_next_run_begins,
        erasure._delete_log,
        "number < run.tombstone",
        "True",
        Upheavals,
    ),
    Mutant(
        0,
        "a prefix is free before its data is gone",
        stories.a_deletion_that_was_interrupted_is_ended_before_the_next_run_begins,
        _getter(Run, "free"),
        "self.erased",
        "self.owner.is_deleted",
        Upheavals,
    ),
    # A log that is gone
    Mutant(
        0,
        "the status does not remember that there was a log",
        stories.a_prefix_that_was_emptied_is_not_a_new_run,
        attempt.check_log,
        "if run.head < floor:",
        "if False:",
    ),
    Mutant(
        0,
        "a marker beside no log means nothing",
        stories.only_a_marker_tells_that_a_log_is_gone,
        belongings.traces,
        "key in (layout.PROGRESS_KEY, layout.MARKER_KEY)",
        "key == layout.PROGRESS_KEY",
    ),
    Mutant(
        0,
        "a log that is gone is a new run",
        stories.only_a_marker_tells_that_a_log_is_gone,
        attempt.check_log,
        "elif traces:",
        "elif False:",
        Upheavals,
    ),
    Mutant(
        0,
        "an append does not look whether the log is there",
        stories.a_log_that_is_gone_is_written_no_more,
        RunLog.append,
        "self.prove()",
        "pass",
        Upheavals,
    ),
    # Changing hands
    Mutant(
        0, "a take-over acts again and again", 5, appends._adopt, "may = not asked_at or", "may = True or", Upheavals
    ),
    Mutant(
        0,
        "a run is taken over only once",
        16,
        appends._adopt,
        " or 0 < action.unset_at >= max(asked_at)",
        "",
        Upheavals,
    ),
    # The rounds of a pass
    Mutant(0, "an operator plans and does nothing", 1, rounds.run, "if not planned or", "if planned or"),
    # Second looks
    Mutant(
        5,
        "one bad transfer is evidence",
        stories.one_bad_transfer_is_no_evidence,
        confirm.confirmed,
        "    while True:",
        "    if found:\n        raise found\n    while True:",
    ),
    Mutant(
        5,
        "one moment counts twice",
        1002,
        requests.record_check,
        " or found.judged != judged",
        "",
        Upheavals,
    ),
    Mutant(
        5,
        "damage is looked at again at once",
        1014,
        Scrubber._read,
        "if not finding.check.passed:",
        "if False:",
        Upheavals,
    ),
    Mutant(
        5,
        "suspects are not looked at again",
        stories.a_second_look_clears_what_is_whole_after_all,
        plan.to_read_back,
        "s.failures or not",
        "not",
        Upheavals,
    ),
    Mutant(
        5,
        "a second look clears nothing",
        stories.a_second_look_clears_what_is_whole_after_all,
        requests.record_check,
        'clears = found.failures and check.level == "Checksums"',
        "clears = False",
        Upheavals,
    ),
    Mutant(
        6,
        "sizes are enough to delete others",
        stories.nothing_goes_before_one_that_stays_was_read_back,
        purging.waits_for_comparison,
        "not verdict.terms.reads_back or",
        "True or",
        Upheavals,
    ),
    Mutant(
        5,
        "released from quarantine is verified",
        stories.what_is_released_from_quarantine_has_to_prove_itself_again,
        fold._released,
        'evidence="", verified=NOT_CHECKED',
        'evidence=""',
        Upheavals,
    ),
)
