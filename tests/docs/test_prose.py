"""The texts for users and contributors read as plain English, and hold no remains of a merge."""

from __future__ import annotations

import re
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
TICS = re.compile(
    r"\b(whoever|nobody|somebody|everybody|for ever|goes on|(?:is|are) told(?! from)|comes to)\b", re.IGNORECASE
)
"""Phrases for code that acts as if it were a person, or that English has a shorter word for."""


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
