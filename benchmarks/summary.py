"""From the results of all runs to the figures that are reported, and what they should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runs import CEILING, CONNECTOR, OURS, STOCK, Run, Section

Figures = dict[str, Any]

BUDGET_MB = 256 * 1024 * 1024 / 1e6
_ALLOWANCE_MB = 64


def figures(results: Sequence[tuple[Run, Mapping[str, Any]]]) -> Figures:
    """What stands in ``engine.json``. What was not measured is left out.

    ``save`` and ``load`` are those of one rank; ``by_ranks`` has all of them. ``ceiling_gb_per_s`` is that of the
    faster direction; each has its own under ``save.ceiling`` and ``load.ceiling``, and with checksums under
    ``save.checked`` and ``load.checked``. ``share.ours`` is what part of the latter ours reaches, by turns in one
    process. ``extra_memory_mb`` is the most of ours, in any of saving, loading, and saving beside training.
    """
    by_ranks: dict[str, Figures] = {}
    sections: dict[str, Figures] = {}
    for run, result in results:
        if run.section is Section.TRANSFER:
            for direction in (way for way in ("save", "load") if result[way]):
                found = by_ranks.setdefault(str(run.ranks), {}).setdefault(direction, {})
                found[run.system] = _faster(found.get(run.system), {"bytes": result["bytes"], **result[direction]})
        else:
            sections.setdefault(str(run.section), {})[run.system] = dict(result)
    fewest = by_ranks[min(by_ranks)] if by_ranks else {}
    report: Figures = {**fewest, "by_ranks": by_ranks, "amplification": _amplification(fewest, sections), **sections}
    report |= _headlines(fewest, sections)
    report["targets"] = [target.judged(value) for target, value in _compared(report)]
    return report


def _faster(one: Figures | None, other: Figures) -> Figures:
    return other if one is None or other["gb_per_s"] > one["gb_per_s"] else one


def _amplification(transfer: Figures, sections: Mapping[str, Figures]) -> Figures:
    """Ours under ``same`` and ``reshard``, the others' under their names."""
    found: Figures = {}
    for name in (STOCK, CONNECTOR, OURS):
        values = {
            "same": transfer.get("load", {}).get(name, {}).get("transferred_per_needed"),
            "reshard": sections.get(Section.RESHARDING, {}).get(name, {}).get("transferred_per_needed"),
        }
        measured = {key: value for key, value in values.items() if value is not None}
        found |= measured if name == OURS else {name: measured} if measured else {}
    return found


def _headlines(transfer: Figures, sections: Mapping[str, Figures]) -> Figures:
    training = sections.get(Section.TRAINING, {}).get(OURS, {})
    memory = [transfer.get(direction, {}).get(OURS, {}).get("extra_memory_mb") for direction in ("save", "load")]
    memory.append(training.get("extra_memory_mb"))
    ceilings = [transfer[direction][CEILING]["gb_per_s"] for direction in transfer if CEILING in transfer[direction]]
    values = {
        "training_lost_s_per_gb": training.get("training_lost_s_per_gb"),
        "extra_memory_mb": max((value for value in memory if value is not None), default=None),
        "ceiling_gb_per_s": max(ceilings, default=None),
    }
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Target:
    """What a figure should at least, or at most, be."""

    what: str
    limit: float
    at_least: bool = False

    def judged(self, value: float) -> Figures:
        met = value >= self.limit if self.at_least else value <= self.limit
        return {"what": self.what, "value": value, "target": f"{'>=' if self.at_least else '<='} {self.limit:g}"} | {
            "met": met
        }


_SPEED = {"save": 2.5, "load": 1.5}
"""GB/s."""
_SAVE_CPU = 0.4
"""CPU seconds per GB."""
_SHARE = 0.75, 1.25
"""Of CRC32C and bare sockets: of the speed of saving, and of the CPU seconds of loading."""


def _compared(report: Figures) -> Iterator[tuple[Target, float]]:
    for direction, speed in _SPEED.items():
        systems = report.get(direction, {})
        ours, stock = (systems.get(name) for name in (OURS, STOCK))
        if ours:
            yield Target(f"{direction}, GB/s", speed, at_least=True), ours["gb_per_s"]
        if ours and stock:
            yield Target(f"{direction}, times stock", 10, at_least=True), ours["gb_per_s"] / stock["gb_per_s"]
    if share := report.get(Section.SHARE, {}).get(OURS):
        speed, cpu = _SHARE
        yield Target("save, speed per that of CRC32C + sockets", speed, at_least=True), share["save"]["speed"]
        yield Target("load, CPU per that of CRC32C + sockets", cpu), share["load"]["cpu"]
    single = {
        "save, CPU s per GB": (report.get("save", {}).get(OURS, {}).get("cpu_s_per_gb"), _SAVE_CPU),
        "bytes read per byte needed": (report["amplification"].get("same"), 1.02),
        "the same, 8 to 6 ranks": (report["amplification"].get("reshard"), 1.15),
        "training lost, s per GB": (report.get("training_lost_s_per_gb"), 0.3),
        "extra memory, MB": (report.get("extra_memory_mb"), BUDGET_MB + _ALLOWANCE_MB),
        "HSDP, most bytes of a rank per mean": (
            report.get(Section.PLANNING, {}).get(OURS, {}).get("hsdp_max_per_mean"),
            1.1,
        ),
    }
    for what, (value, limit) in single.items():
        if value is not None:
            yield Target(what, limit), value
