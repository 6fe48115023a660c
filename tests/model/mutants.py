"""The rules of the protocol, each switched off in the real code by the smallest change that does it."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from checkpoint_operator import entries, execute, plan
from checkpoint_operator.storage import Session as OperatorSession
from checkpoint_sidecar.core import attempt, lineage, log, overwrite, replay, retention
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.store import pointer
from checkpoint_sidecar.store.runlog import RunLog
from checkpoint_sidecar.training.session import Session


@dataclass(frozen=True)
class Mutant:
    """One line of the code under test, changed.

    Attributes:
        rule: Of the design, 1 to 11; 0 for fencing and the order of a save, which come before them.
        name: What the changed code does wrong.
        function: Where.
        old, new: Text of the function.
    """

    rule: int
    name: str
    function: Callable[..., Any]
    old: str
    new: str

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        """Replace the code, also for everybody who imported the function by name."""
        source = textwrap.dedent(inspect.getsource(self.function))
        assert source.count(self.old) == 1, f"{self.function.__qualname__} has changed: adapt the mutant {self.name!r}"
        changed: dict[str, Any] = {}
        flags = "from __future__ import annotations\n"
        source = source.removeprefix("@property\n")
        exec(flags + source.replace(self.old, self.new), vars(sys.modules[self.function.__module__]), changed)
        patch.setattr(self.function, "__code__", changed[self.function.__name__].__code__)


def _getter(owner: type, name: str) -> Callable[..., Any]:
    getter: Callable[..., Any] = inspect.getattr_static(owner, name).fget
    return getter


MUTANTS = (
    Mutant(0, "a fenced attempt may commit", Run.may_commit, "attempt == self.highest_attempt >", "attempt >"),
    Mutant(0, "an adoption fences nobody", replay._adopted, "fenced_up_to=run.highest_attempt,", ""),
    Mutant(
        0,
        "a start that finds nothing to restore begins anew",
        lineage.restore_plan,
        'on_missing == "Auto" and not run.ever_committed',
        'on_missing == "Auto"',
    ),
    Mutant(
        1,
        "an entry is not computed again after a lost race",
        RunLog.append,
        "body = compute(run)",
        "body = compute(run) if not lost else body",
    ),
    Mutant(
        2,
        "an unknown outcome is reported as a failure",
        RunLog._occupy,
        "return self._settle(put_and_look)",
        "return put_and_look()",
    ),
    Mutant(2, "whoever took the number is taken for oneself", RunLog.append, "if occupant.id == entry_id:", "if True:"),
    Mutant(
        2,
        "whatever is at the number is taken for another's",
        RunLog.append,
        "if occupant.id == entry_id:",
        "if occupant.id == entry_id and not lost and type(body).__name__ != 'SnapshotCommitted':",
    ),
    Mutant(3, "what is in use may go", lineage.in_use, "return ", "return None and "),
    Mutant(
        3,
        "an attempt starts without a word on what it reads",
        attempt.start,
        'candidate=plan.candidates[0] if plan.candidates else ""',
        'candidate=""',
    ),
    Mutant(
        3,
        "a candidate is read unannounced",
        Session.next_candidate,
        "self.log.append(lambda run: decisions.announce(run, self.attempt, self.skipped))",
        "next((e for e in [self.log.append(lambda run: None)] if e), None) or __import__('types').SimpleNamespace(body=decisions.announce(self.log.run, self.attempt, self.skipped)) if decisions.announce(self.log.run, self.attempt, self.skipped) else None",
    ),
    Mutant(
        4,
        "a request is never consumed",
        replay._committed,
        "pending=None if served else run.pending",
        "pending=run.pending",
    ),
    Mutant(
        4,
        "a rollback falls back to what is newer",
        lineage.restore_plan,
        "ancestors(run, request.snapshot)",
        "(*ancestors(run, request.snapshot), *lineage(run))",
    ),
    Mutant(
        4,
        "a start does not carry the request",
        attempt.start,
        "restore_plan(run, run.pending)",
        "restore_plan(run, None)",
    ),
    Mutant(4, "the target of a rollback may go", lineage.rollback_target, "return ", "return None and "),
    Mutant(5, "any failure to restore is evidence", Session.failed, 'else "None"', 'else "MissingObject"'),
    Mutant(
        5,
        "an operator blames the snapshot for the store",
        execute.verify,
        "except CorruptSnapshotError as error:",
        "except Exception as error:\n        error.evidence = 'MissingObject'",
    ),
    Mutant(
        5,
        "a failure without evidence counts",
        replay._Working.record_check,
        'elif not passed and check.evidence != "None":',
        "elif not passed:",
    ),
    Mutant(6, "unverified counts as verified", _getter(Snapshot, "proven"), 'self.verified != "None" and ', ""),
    Mutant(6, "the newest verified one may go", retention._floors, '_mark(keep, [verified], "NewestVerified")', ""),
    Mutant(
        6,
        "damaged ones count for keepLast",
        retention.judge,
        "s.failures == 0 and s.id not in replacements",
        "s.id not in replacements",
    ),
    Mutant(
        6,
        "superseded ones go at once",
        retention.judge,
        "enough = sum(s.live for s in standing) >= (policy.keep_last or 1)",
        "enough = True",
    ),
    Mutant(
        6,
        "a superseded one is a fallback",
        lineage.restore_plan,
        "lineage(run) if request is None",
        "tuple(reversed(run.snapshots.values())) if request is None",
    ),
    Mutant(
        7,
        "replaced ones go before their replacement is verified",
        retention.judge,
        "if replacement and not replacement.proven and",
        "if False and",
    ),
    Mutant(7, "an automatic save saves a step again", attempt.admit_save, "trigger in AUTOMATIC or ", ""),
    Mutant(
        7,
        "the policy is not asked again at the commit",
        attempt.commit,
        "admission = admit_save(run, draft.attempt, draft.step, trigger=draft.trigger, overwrite=overwrite)",
        'admission = Admitted("")',
    ),
    Mutant(
        8,
        "data is deleted before PurgeStarted",
        execute._purge,
        "    session.log.append(lambda run: start_purge",
        "    session.store.delete([i.key for i in session.store.list(session.log.run.snapshots[identifier].commit.path)])\n    session.log.append(lambda run: start_purge",
    ),
    Mutant(
        8,
        "a rollback recalls what is being purged",
        replay._rollback,
        "(SnapshotState.LIVE, SnapshotState.RETIRED)",
        "SnapshotState",
    ),
    Mutant(
        8,
        "what was never retired is purged",
        replay._purge_started,
        "is SnapshotState.RETIRED",
        "is not SnapshotState.PURGING",
    ),
    Mutant(
        8,
        "a retired one is never reinstated",
        attempt.announce,
        "for candidate in plan.last_resort:",
        "for candidate in ():",
    ),
    Mutant(
        9,
        "the grace is measured by the writer's clock",
        log.decode,
        "stored_at=stored_at,",
        "stored_at=dt.datetime.fromisoformat(envelope.time),",
    ),
    Mutant(9, "there is no grace", retention.purge_due, ">= policy.grace_seconds", ">= 0"),
    Mutant(
        10,
        "a publisher does not look again",
        pointer.publish,
        "if _identifier(published_for(run, step)) == _identifier(wanted):\n            return",
        "if True:\n            return",
    ),
    Mutant(10, "a purge leaves the pointer alone", execute._purge, "    _publish(session, folder.step)\n", ""),
    Mutant(10, "the operator repairs no pointer", plan._pointers, "unsure[:MAX_POINTERS]", "unsure[-1:]"),
    Mutant(
        11,
        "training gives up after a lost race",
        RunLog._give_way,
        "if self._polite:",
        "if not self._polite and lost > 1:\n        raise StoreError('append to the run log', self.store.url, 'the race was lost twice')\n    if self._polite:",
    ),
    Mutant(
        1,
        "a decision to retire is not made again",
        entries._retire,
        "judge(run, now=now).retire.get(action.snapshot)",
        '("Planned",)',
    ),
)
