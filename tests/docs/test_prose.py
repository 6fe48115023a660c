"""The texts for users and contributors, code included, read as plain English, and hold no remains of a merge."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
GENERATED = {"docs/faults.md"}
PATTERNS = (
    "*.md",
    "docs/**/*.md",
    "crds/*.yaml",
    "charts/*/*.yaml",
    "charts/*/templates/**/*",
    "examples/*",
    ".github/**/*",
)
TEXTS = sorted(
    {
        path.relative_to(REPOSITORY).as_posix()
        for pattern in PATTERNS
        for path in REPOSITORY.glob(pattern)
        if path.is_file() and path.suffix in {".md", ".yaml", ".yml", ".tpl", ".txt", ".py"}
    }
    - GENERATED
    - {"CHANGELOG.md"}
)
CODE = ("operator", "sidecar", "cli", "tests", "tools", "benchmarks", "docs", "charts")
"""Folders whose Python files are read: comments, docstrings, messages and the names of tests."""
PEOPLE = r"(?<!user )(?<!users )(?<!reader )(?<!administrator )(?<!someone )(?<!anyone )(?<!everyone )"
TICS = re.compile(
    rf"\b(whoever|nobody|somebody|everybody|anybody|no\sone|for\sever|goes?\son|(?:is|are|was|were)\stold(?!\sfrom)"
    rf"|comes\sto|{PEOPLE}whom?)\b",
    re.IGNORECASE,
)
"""Phrases for code that acts like a person, or that English has a shorter word for. Users are people."""
UPPER_CASE = re.compile(r"[A-Z_]+")


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each comment, string and test name of a Python file with its line; a string of one word is data."""
    with tokenize.open(path) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
                yield token.start[0], token.string
            elif token.type == tokenize.NAME and token.string.startswith("test_"):
                yield token.start[0], token.string.replace("_", " ")


def test_the_texts_are_found() -> None:
    assert {"README.md", "docs/training.md", "crds/checkpoints.yaml", "charts/checkpoint-operator/values.yaml"} <= {
        *TEXTS
    }


@pytest.mark.parametrize("text", [*TEXTS, "CHANGELOG.md"])
def test_no_conflict_of_a_merge_is_left(text: str) -> None:
    lines = (REPOSITORY / text).read_text().splitlines()
    assert [line for line in lines if re.match(r"(<{7}|>{7}|={7}$|\|{7})", line)] == []


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_names_the_actor(text: str) -> None:
    lines = (REPOSITORY / text).read_text().splitlines()
    found = [f"{number}: {line.strip()[:100]}" for number, line in enumerate(lines, 1) if TICS.search(line)]
    assert found == []


@pytest.mark.parametrize("folder", CODE)
def test_code_speaks_of_people_only_where_it_means_people(folder: str) -> None:
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files
    found = [
        f"{path.relative_to(REPOSITORY)}:{line + text[: match.start()].count(chr(10))}: {match[0]}"
        for path in files
        for line, text in prose_of(path)
        for match in TICS.finditer(text)
        if not UPPER_CASE.fullmatch(match[0])
    ]
    assert found == []
