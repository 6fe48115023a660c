"""The operator's dealings with one run's store, in a process of its own: its real plans, carried out for real."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import replace
from typing import Any
from unittest import mock

from checkpoint_operator.act import rounds
from checkpoint_operator.decide import plan
from checkpoint_operator.decide.finalizer import FINALIZER
from checkpoint_operator.gather import run_store
from checkpoint_operator.gather.memory import Memory
from checkpoint_operator.gather.run_store import RunStore
from checkpoint_operator.gather.spec_policy import policy_of
from checkpoint_operator.model.observed import Checkpoint, Observed
from checkpoint_operator.model.outcome import ActionOutcome
from checkpoint_sidecar.core.log import Owner
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from crashes.points import Crash
from support.builders import OBJECT_UID
from support.coroutines import result_of
from support.observations import CREATED, KEY, spec_of
from training.ranks import SERVER

OWNER = Owner("local", "local", "run")
"""As a Checkpointer outside Kubernetes names the owner of ``.../run``."""

_PASSES = 5
_SOON_SECONDS = 30


def operate(settings: StoreSettings, crash: Crash | None = None, **spec: Any) -> int | None:
    """Plan and carry out until nothing is left to do. Returns the exit status: 0, or 1 after an error.

    Args:
        spec: Of the Checkpoint, in the user's spelling; with ``deletionPolicy: Delete`` it is deleted already.
    """
    process = SERVER.Process(target=_operate, args=(settings, crash, spec))
    process.start()
    process.join(60)
    process.kill()
    process.join()
    return process.exitcode


def _operate(settings: StoreSettings, crash: Crash | None, spec: dict[str, Any]) -> None:
    if crash is not None:

        def crashing(settings: StoreSettings, **options: Any) -> Store:
            return crash.wrap(0, open_store(settings, **options))

        mock.patch.object(run_store, "open_store", crashing).start()
    session = RunStore(settings, writer="operator test")
    session.probe()
    memory = Memory(session)
    wanted, now = spec_of(**spec), dt.datetime.now(dt.UTC)
    checkpoint = Checkpoint(KEY, OBJECT_UID, 1, CREATED, wanted)
    if wanted.deletion_policy == "Delete":
        checkpoint = replace(checkpoint, finalizers=(FINALIZER,), deleted_at=now)
    seen = Observed(
        owner=OWNER,
        checkpoint=checkpoint,
        wall=now,
        policy=policy_of(wanted),
    )

    async def blocking(work: rounds.RoundWork) -> tuple[ActionOutcome, ...]:
        outcomes = work()
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return outcomes

    run = session.log.refresh()
    for _ in range(_PASSES):
        seen = replace(seen, run=run, now=session.now(), memory=memory.known())
        seen = result_of(rounds.run(seen, memory, blocking=blocking))
        run = session.log.run
        if not plan.store_actions(seen):
            due = plan.next_pass(seen)
            if due is None or due > _SOON_SECONDS:
                return
            time.sleep(due)
    raise AssertionError("the operator does not come to an end")
