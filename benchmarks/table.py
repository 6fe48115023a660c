"""The figures as one table: for a terminal, and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from runs import CEILING, CHECKED, OURS, PEERS, STOCK, SYSTEMS, Section
from summary import Figures

HEADINGS = (
    "case",
    "system",
    "save\nGB/s",
    "CPU\ns/GB",
    "load\nGB/s",
    "CPU\ns/GB",
    "read/\nneeded",
    "8 to 6\nranks",
    "training\nlost s/GB",
    "blocked\ns/GB",
    "extra\nMB",
)
_NAMES = {CEILING: "bare sockets", CHECKED: "CRC32C + bare sockets", STOCK: "torch + s3fs"}
_ELSEWHERE = {Section.LOCAL: "local files", Section.SEAWEEDFS: "SeaweedFS", Section.TLS: "model, TLS"}
_SHARES = {Section.SHARE: "model, 1 rank", Section.TLS_SHARE: "model, TLS"}
_LOCAL_NAMES = {STOCK: "torch"}

Row = tuple[str, ...]


def terminal(report: Figures) -> Table:
    machine = report["machine"]
    table = Table(
        title=f"saving and loading, {machine['cores']} cores, torch {report['versions']['torch']}",
        caption="\n".join(notes(report)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    case = ""
    for row in rows(report):
        if row[0] and case:
            table.add_section()
        case = row[0] or case
        table.add_row(*row)
    return table


def markdown(report: Figures) -> str:
    lines = ["| " + " | ".join(heading.replace("\n", " ") for heading in HEADINGS) + " |"]
    lines.append("| --- | --- |" + " ---: |" * (len(HEADINGS) - 2))
    lines += ["| " + " | ".join(row) + " |" for row in rows(report)]
    lines += ["", *(f"- {note}" for note in notes(report))]
    return "\n".join(lines)


def rows(report: Figures) -> Iterator[Row]:
    """The case stands in its first row only."""
    for ranks, transfer in report["by_ranks"].items():
        case = f"model, {ranks} rank{'s' if ranks != '1' else ''}"
        for name in _present(transfer.get("save", {}) | transfer.get("load", {})):
            label = f"{name} {report['versions'][name]}" if name in PEERS else _NAMES.get(name, name)
            yield case, label, *_speeds(transfer, name), *_more(report, name, ranks)
            case = ""
    small = report.get(Section.SMALL, {})
    for name in _present(small):
        count = small[name]["tensors"]
        rates = [f"{count / small[name][way]['seconds']:,.0f}/s" for way in ("save", "load")]
        case = f"{count:,} small tensors" if name == _present(small)[0] else ""
        yield case, _NAMES.get(name, name), rates[0], "", rates[1], "", *_memory(small[name])
    for section, case in _ELSEWHERE.items():
        for name in _present(report.get(section, {})):
            system = _LOCAL_NAMES.get(name, name) if section is Section.LOCAL else _NAMES.get(name, name)
            result = report[section][name]
            speeds = _speeds({way: {name: result[way]} for way in ("save", "load")}, name)
            yield case if name == _present(report[section])[0] else "", system, *speeds, *_memory(result)


def notes(report: Figures) -> Iterator[str]:
    for name in _present(report.get(Section.PLANNING, {})):
        planning = report[Section.PLANNING][name]
        yield (
            f"planning, {_NAMES.get(name, name)}: {planning['planning_s_per_1000_tensors'] * 1000:.0f} ms per 1,000 "
            f"tensors; HSDP: the busiest rank writes {planning['hsdp_max_per_mean']:.2f} times the mean"
        )
    for section, case in _SHARES.items():
        for share in report.get(section, {}).values():
            shares = [
                f"{way} {share[way]['speed']:.2f} of its speed for {share[way]['cpu']:.2f} times its CPU seconds "
                f"({share[way]['gb_per_s']:.2f} of {share[way]['ceiling_gb_per_s']:.2f} GB/s, "
                f"{share[way]['cpu_s_per_gb']:.2f} and {share[way]['ceiling_cpu_s_per_gb']:.2f} s/GB)"
                for way in ("save", "load")
            ]
            yield f"{case}, {OURS} by turns with {_NAMES[CHECKED]}: {'; '.join(shares)}"
    for target in report["targets"]:
        if not target["met"]:
            yield f"missed: {target['what']} is {target['value']:.2f}, should be {target['target']}"


def _present(systems: Mapping[str, Any]) -> Sequence[str]:
    return [name for name in SYSTEMS if name in systems]


def _speeds(transfer: Figures, name: str) -> Row:
    """A system that cannot save says so."""
    return tuple(
        f"{transfer[direction][name][key]:.2f}" if name in transfer.get(direction, {}) else impossible
        for direction in ("save", "load")
        for key, impossible in (("gb_per_s", "cannot"), ("cpu_s_per_gb", ""))
    )


def _more(report: Figures, name: str, ranks: str) -> Row:
    """What is measured once: in the row of one rank, except bytes and memory."""
    transfer = report["by_ranks"][ranks]
    same = transfer["load"][name].get("transferred_per_needed") if name not in (CEILING, CHECKED) else None
    once = ranks == min(report["by_ranks"])
    training = report.get(Section.TRAINING, {}).get(name, {}) if once else {}
    reshard = report.get(Section.RESHARDING, {}).get(name, {}) if once else {}
    memory = [transfer[way][name]["extra_memory_mb"] for way in ("save", "load") if name in transfer.get(way, {})]
    memory += [training["extra_memory_mb"]] if training else []
    return (
        _shown(same),
        _shown(reshard.get("transferred_per_needed")),
        _shown(training.get("training_lost_s_per_gb")),
        _shown(training.get("blocked_s_per_gb")),
        f"{max(memory):.0f}",
    )


def _memory(result: Mapping[str, Any]) -> Row:
    return "", "", "", "", f"{max(result[way]['extra_memory_mb'] for way in ('save', 'load')):.0f}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
