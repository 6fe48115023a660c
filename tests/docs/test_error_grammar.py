"""Every error of the product reads ``<operation> <object>: <cause>. <next step>``; a log line starts in lower case."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from checkpoint_sidecar.core import errors

ROOT = Path(__file__).parents[2]
ERRORS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.CheckpointError) and name != "CheckpointError"
} | {"CheckpointError", "BudgetError"}
# Verbs in the imperative, as in "read", "list": a word that ends otherwise is a noun or a participle.
NO_VERB = ("ing", "ed", "tion", "ment")
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
SIGNAL = "SIGTERM"


@functools.cache
def calls() -> tuple[tuple[str, ast.Call], ...]:
    """Return every call in the product, with its place."""
    return tuple(
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for folder in ("operator/checkpoint_operator", "sidecar/checkpoint_sidecar", "cli/checkpoint_cli")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    )


def constructions() -> Iterator[tuple[str, tuple[str | None, ...]]]:
    """Yield where an error is made, and its texts as far as they are written there; other parts appear as ``{}``."""
    for where, node in calls():
        if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            yield where, tuple(map(text_of, node.args[:4]))


def log_lines() -> Iterator[tuple[str, str]]:
    """Yield where the product logs, and the format of the line."""
    for where, node in calls():
        logs = isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS
        if logs and "logger" in ast.unparse(node.func) and (text := text_of(node.args[0])):
            yield where, text


def text_of(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def faults_of(operation: str | None, cause: str | None, hint: str | None) -> Iterator[str]:
    """Yield what is wrong with the texts of one error."""
    if operation is not None and not operation.startswith("{}"):
        verb = operation.split()[0]
        if verb != verb.lower() or verb.endswith(NO_VERB) or operation[-1] in ":.,":
            yield f"{operation!r} is no verb phrase"
    if cause is not None and cause.endswith("."):
        yield f"{cause!r} ends with a period"
    if hint and not (hint.endswith((".", "{}")) or ": " in hint):
        yield f"{hint!r} is no sentence"
    if hint and hint[0] != hint[0].upper():
        yield f"{hint!r} starts in lower case"


def test_an_error_reads_as_a_sentence_and_a_next_step() -> None:
    made = dict(constructions())
    assert len(made) > 100
    found = []
    for where, texts in made.items():
        operation, _, cause, hint = (*texts, None, None, None, None)[:4]
        found += [f"{where}: {fault}" for fault in faults_of(operation, cause, hint)]
    assert found == []


def test_a_log_line_starts_in_lower_case() -> None:
    lines = dict(log_lines())
    assert len(lines) > 50
    assert [(where, line) for where, line in lines.items() if line[:1].isupper() and not line.startswith(SIGNAL)] == []
