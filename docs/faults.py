#!/usr/bin/env python3
"""Write docs/faults.md from what a test run left in build/: faults.json, crash_matrix.json and model.json."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
BUILD = DOCS.parent / "build"
PAGE = DOCS / "faults.md"
SOURCES = ("faults.json", "crash_matrix.json", "model.json")

_INTRODUCTION = """# Faults injected, and what came of them

Written by `python docs/faults.py` from the last run of `make test` (or `make test-faults`, which runs many more of the
same kinds). Every line is a test that asserts what is written here.
"""


def store_faults(findings: Iterable[dict[str, str]]) -> Iterator[str]:
    """One row a fault, one column a verb; a cell says how each adapter's call ended."""
    outcomes: dict[str, dict[str, dict[str, set[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))
    verbs: list[str] = []
    for found in findings:
        if found["verb"] not in verbs:
            verbs.append(found["verb"])
        adapter = "s3fs" if found["adapter"].startswith("S3fs") else "native"
        outcomes[found["fault"]][found["verb"]][found["outcome"].removesuffix("Error")].add(adapter)
    yield "## Between the library and the store\n"
    yield "Through both adapters unless one is named. `UnknownOutcome` is settled by reading back.\n"
    yield f"| fault | {' | '.join(verbs)} |"
    yield f"| --- |{' --- |' * len(verbs)}"
    for fault, by_verb in outcomes.items():
        yield f"| {fault} | {' | '.join(_cell(by_verb.get(verb, {})) for verb in verbs)} |"


def _cell(outcomes: dict[str, set[str]]) -> str:
    if not outcomes:
        return ""
    return ", ".join(
        outcome if len(adapters) == 2 else f"{outcome} ({', '.join(adapters)})"
        for outcome, adapters in outcomes.items()
    )


def crashes(matrix: dict[str, Any]) -> Iterator[str]:
    """One row a crash point."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for crash in matrix["crashes"]:
        grouped[crash["path"], crash["point"]].append(crash)
    yield "\n## Crashes of processes\n"
    yield f"{len(grouped)} points, {len(matrix['crashes'])} crashes: SIGKILL of a real process, or an exception. "
    yield "Afterwards a fresh process group restores; what must be absent is looked for and not there.\n"
    yield "| path | point | how | restored | absent afterwards |"
    yield "| --- | --- | --- | --- | --- |"
    for (path, point), group in grouped.items():
        modes = ", ".join(crash["mode"] for crash in group)
        restored = ", ".join(sorted({str(crash["restored"]) for crash in group}))
        yield f"| {path} | {point} | {modes} | {restored} | {', '.join(group[0]['absent'])} |"


def model(explored: dict[str, Any]) -> Iterator[str]:
    yield "\n## Interleavings\n"
    yield "The model-based test drives the real log, library and operator against a model of the promises: lost"
    yield "and late requests, kills, jumps of clocks, damage and repair, changes of owner, deletion and re-creation"
    yield "of a run, a log that vanishes, and data of others, which never changes. For every rule of the"
    yield "protocol there is a mutant of the code without it, which the model catches.\n"
    yield "| | |\n| --- | --- |"
    for name, value in explored.items():
        if isinstance(value, int | float | str):
            yield f"| {name.replace('_', ' ')} | {value} |"


def main() -> int:
    missing = [name for name in SOURCES if not (BUILD / name).exists()]
    if missing:
        print(f"build/ lacks {', '.join(missing)}: run `make test` first", file=sys.stderr)
        return 1
    faults, matrix, explored = (json.loads((BUILD / name).read_text()) for name in SOURCES)
    lines = [_INTRODUCTION, *store_faults(faults), *crashes(matrix), *model(explored)]
    PAGE.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
