"""What part of a ceiling a system reaches: they save and load by turns in one process.

Neighbors on the machine then disturb both alike, so that the ratio of two turns that follow each other says more than
the ratio of two runs.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import llama
from measuring import Cost, measured
from processes import Result, serve
from systems import Server, System, system

_GB = 1e9


@dataclass(frozen=True)
class Share:
    """Medians over all rounds. Attributes:
    ceiling: The fastest of the ceilings.
    speed: Of the system, per that of the ceiling.
    cpu: CPU seconds of the system, per those of the ceiling.
    """

    ceiling: str
    ceiling_gb_per_s: float
    ceiling_cpu_s_per_gb: float
    gb_per_s: float
    cpu_s_per_gb: float
    speed: float
    cpu: float


def turns(
    *,
    name: str,
    ceilings: list[str],
    server: dict[str, str],
    save_to: str,
    keep_at: str,
    total_bytes: int,
    repetitions: int,
) -> Result:
    """Save and load with every system in each round; the first round warms up.

    Args:
        ceilings: With numbers of connections, as in ``checked-4``.
        save_to: A URL for saves that are never read.
        keep_at: A URL for saves that can be read.
    """
    tested = {each: system(each, Server(**server), rank=0) for each in (name, *ceilings)}
    state = llama.sharded(llama.shapes(total_bytes), init_device_mesh("cpu", (1,)), [Shard(0)])
    llama.fill(state)
    size = sum(llama.local(tensor).nbytes for tensor in state.values())

    numbers = iter(range(len(tested) * (1 + repetitions)))
    saves = _by_turns(tested, repetitions, lambda each, _: each.save(state, f"{save_to}/{next(numbers)}"))
    kept = {each: f"{keep_at}/{each.partition('-')[0]}" for each in tested}
    for each in (name, ceilings[0]):
        tested[each].save_for_loading(state, kept[each])
    llama.clear(state)
    loads = _by_turns(tested, repetitions, lambda each, url: each.load(state, url), kept)
    llama.check(state)
    return {
        "bytes": size,
        "save": asdict(_share(saves, name, ceilings, size)),
        "load": asdict(_share(loads, name, ceilings, size)),
    }


def _by_turns(
    tested: Mapping[str, System],
    repetitions: int,
    work: Callable[[System, str], None],
    urls: Mapping[str, str] | None = None,
) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {name: [] for name in tested}
    for _ in range(1 + repetitions):
        for name, each in tested.items():
            costs[name].append(measured(functools.partial(work, each, (urls or {}).get(name, ""))))
    return {name: measurements[1:] for name, measurements in costs.items()}


def _share(costs: Mapping[str, Sequence[Cost]], name: str, ceilings: Sequence[str], size: int) -> Share:
    def seconds(each: str) -> float:
        return statistics.median(cost.seconds for cost in costs[each])

    def cpu_seconds(each: str) -> float:
        return statistics.median(cost.cpu_seconds for cost in costs[each])

    ceiling = min(ceilings, key=seconds)
    pairs = list(zip(costs[name], costs[ceiling], strict=True))
    return Share(
        ceiling=ceiling,
        ceiling_gb_per_s=size / seconds(ceiling) / _GB,
        ceiling_cpu_s_per_gb=cpu_seconds(ceiling) / size * _GB,
        gb_per_s=size / seconds(name) / _GB,
        cpu_s_per_gb=cpu_seconds(name) / size * _GB,
        speed=statistics.median(other.seconds / mine.seconds for mine, other in pairs),
        cpu=statistics.median(mine.cpu_seconds / other.cpu_seconds for mine, other in pairs),
    )


if __name__ == "__main__":
    serve(turns)
