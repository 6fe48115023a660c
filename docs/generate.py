#!/usr/bin/env python3
"""Write the parts of docs/ that follow from the code. With --check, only say whether they are up to date."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from checkpoint_cli.exits import ExitStatus
from checkpoint_cli.help import page
from checkpoint_cli.records import PRINTED
from checkpoint_cli.verbs import Door, verbs_of
from checkpoint_operator.report.checks import ConditionCheck
from checkpoint_operator.report.health import CHAINS
from checkpoint_operator.report.snapshot_health import SNAPSHOT_CHAINS
from checkpoint_sidecar.core.log import KINDS, Envelope
from checkpoint_sidecar.core.log_format import FORMAT_MAJOR

DOCS = Path(__file__).resolve().parent


def log_schema() -> dict[str, Any]:
    """The JSON schema of a log entry: the envelope, and for each known kind its body.

    Whatever a reader has to tolerate is valid: further fields, and kinds that are not known here.
    """
    _, definitions = msgspec.json.schema_components([Envelope, *KINDS.values()], ref_template="#/$defs/{name}")
    envelope = definitions.pop("Envelope")
    of_this_major = {"format": {"type": "string", "pattern": rf"^{FORMAT_MAJOR}\.[0-9]{{1,4}}$"}}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Entry of a run log",
        "description": "One object _log/<20 digits>.json. docs/format.md says what it means.",
        "type": "object",
        "properties": envelope["properties"] | of_this_major,
        "required": envelope["required"],
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"properties": {"body": {"$ref": f"#/$defs/{kind}"}}},
            }
            for kind in KINDS
        ],
        "$defs": definitions,
    }
    portable: dict[str, Any] = _portable(schema)
    return portable


def _portable(value: Any) -> Any:
    """The same schema in words and patterns that are not Python's."""
    if isinstance(value, list | tuple):
        return [_portable(each) for each in value]
    if not isinstance(value, dict):
        return value
    made = {name: _portable(each) for name, each in value.items()}
    if isinstance(made.get("pattern"), str):
        made["pattern"] = made["pattern"].replace(r"\Z", "$")
    if isinstance(made.get("description"), str):
        first_paragraph = made["description"].split("\n\n")[0]
        made["description"] = re.sub(r"\s+", " ", first_paragraph).replace("``", "")
    return made


def conditions_page(page: str) -> str:
    """The page with the rows of all conditions in the order in which the operator asks.

    The status and the reason of each row come from the checks; what it means and what to do is written by hand and
    kept. A reason that is new gets an empty row, which a test refuses.
    """
    for kind, chain in CHAINS.items():
        page = _with_rows(page, f"### {kind}\n", chain)
    for kind, checks in SNAPSHOT_CHAINS.items():
        title = f"{kind} (of a snapshot)" if kind in CHAINS else kind
        page = _with_rows(page, f"### {title}\n", checks)
    return page


_HEAD = "| status | reason | means | do |\n| --- | --- | --- | --- |\n"


def _with_rows(page: str, heading: str, chain: Iterable[ConditionCheck[Any]]) -> str:
    before, heading, rest = page.partition(heading)
    words, head, rest = rest.partition(_HEAD)
    rows, end, after = rest.partition("\n\n")
    written = {tuple(row.split(" | ")[:2]): row for row in rows.splitlines()}
    wanted = dict.fromkeys((f"| {check.status}", reason) for check in chain for reason in _reasons(check))
    rows = "\n".join(written.get(key, f"{key[0]} | {key[1]} | | |") for key in wanted)
    return f"{before}{heading}{words}{head}{rows}{end}{after}"


def _reasons(check: ConditionCheck[Any]) -> list[str]:
    return [check.see] if check.see else [f"`{reason}`" for reason in check.reasons]


def cli_schema() -> dict[str, Any]:
    """Return the JSON schema of the command line's output with ``-o json``; ``kind`` names the record."""
    references, definitions = msgspec.json.schema_components(PRINTED, ref_template="#/$defs/{name}")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Output of checkpoint and kubectl ckpt",
        "description": "One object printed with -o json. docs/cli.md describes the verbs.",
        "oneOf": list(references),
        "$defs": definitions,
    }
    portable: dict[str, Any] = _portable(schema)
    return portable


def cli_page(text: str) -> str:
    """The page with the exit statuses and each verb's help; all before that is written by hand and kept."""
    by_hand, _, _ = text.partition("## Exit statuses\n")
    parts = [by_hand + "## Exit statuses\n", "| status | means |\n| --- | --- |\n" + "\n".join(_exit_rows()) + "\n"]
    for door in Door:
        parts.append(f"## The verbs of {door.value}\n")
        for verb in verbs_of(door):
            parts.append(f"### {door.value} {verb.name}\n")
            parts.append(f"```text\n{page(door, verb)}\n```\n")
    return "\n".join(parts)


def _exit_rows() -> Iterable[str]:
    source = Path(inspect.getfile(ExitStatus)).read_text()
    for status in ExitStatus:
        words = re.search(rf'{status.name} = {status.value}\n    """(.*?)"""', source, re.DOTALL)
        if words is None:
            raise ValueError(f"{status.name} has no description")
        yield f"| {status.value} | {words[1]} |"


CLI = DOCS / "cli.md"
CONDITIONS = DOCS / "conditions.md"
GENERATED = {
    CLI: lambda: cli_page(CLI.read_text()),
    DOCS / "cli-schema.json": lambda: json.dumps(cli_schema(), indent=2) + "\n",
    DOCS / "log-schema.json": lambda: json.dumps(log_schema(), indent=2) + "\n",
    CONDITIONS: lambda: conditions_page(CONDITIONS.read_text()),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is stale")
    check = parser.parse_args().check
    wanted = {path: make() for path, make in GENERATED.items()}
    stale = {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if check:
            print(f"docs/{path.name} is stale: run docs/generate.py", file=sys.stderr)
        else:
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
