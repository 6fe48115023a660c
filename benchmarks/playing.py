"""Playing several ranks in one process, one after the other, in a group that only pretends to have them.

What a rank writes and reads follows from its plan alone; the calls are those of ``dcp.save`` and ``dcp.load``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.distributed.checkpoint import DefaultLoadPlanner, Metadata, StorageReader, StorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

import llama
from training.ranks import playing

Shards = Callable[[], llama.State]
"""Makes the state of the rank that is played."""


def plan_save(
    writers: Sequence[StorageWriter], planners: Sequence[SavePlanner], shards: Shards
) -> tuple[list[SavePlan], Metadata]:
    """The plans of all ranks, one for each writer."""
    plans: list[SavePlan] = []
    for rank, (writer, planner) in enumerate(zip(writers, planners, strict=True)):
        with playing(rank, len(writers)):
            planner.set_up_planner(shards(), writer.storage_meta(), rank == 0)
            writer.set_up_storage_writer(rank == 0)
            plans.append(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = planners[0].create_global_plan(plans)
    plans = writers[0].prepare_global_plan(plans)
    finished = [planner.finish_plan(plan) for planner, plan in zip(planners, plans, strict=True)]
    return finished, metadata


def save(writers: Sequence[StorageWriter], planners: Sequence[SavePlanner], shards: Shards) -> None:
    plans, metadata = plan_save(writers, planners, shards)
    written = [
        writer.write_data(plan, planner).wait() for writer, plan, planner in zip(writers, plans, planners, strict=True)
    ]
    writers[0].finish(metadata, written)


def load(readers: Sequence[StorageReader], shards: Shards) -> int:
    """Load on every rank and check what came. Returns the bytes that all ranks together needed."""
    planners = [DefaultLoadPlanner() for _ in readers]
    states, plans = [], []
    for rank, (reader, planner) in enumerate(zip(readers, planners, strict=True)):
        with playing(rank, len(readers)):
            state = shards()
            metadata = reader.read_metadata()
            planner.set_up_planner(state, metadata, rank == 0)
            reader.set_up_storage_reader(metadata, rank == 0)
            plans.append(reader.prepare_local_plan(planner.create_local_plan()))
            states.append(state)
    plans = readers[0].prepare_global_plan(planners[0].create_global_plan(plans))
    for rank, (reader, planner, plan) in enumerate(zip(readers, planners, plans, strict=True)):
        with playing(rank, len(readers)):
            reader.read_data(planner.finish_plan(plan), planner).wait()
            llama.check(states[rank])
    return sum(llama.local(tensor).nbytes for state in states for tensor in state.values())
