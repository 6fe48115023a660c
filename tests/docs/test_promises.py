"""The pages that say which test holds a promise name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = ("README.md", "docs/promises.md")
NAMING_TESTS = (*PAGES, "docs/security.md")
PROMISES = tuple(f"P{number}" for number in range(1, 19))

_LINKED_TEST = re.compile(r"\[`(test_\w+)(…?)`\]\(([^)]+\.py)\)")


def rows(page: str) -> dict[str, str]:
    """The table row of each promise."""
    lines = (REPOSITORY / page).read_text().splitlines()
    return {line.split("|")[1].strip(): line for line in lines if re.match(r"\| P\d+ \|", line)}


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_is_printed_with_what_holds_it(page: str) -> None:
    printed = rows(page)
    assert tuple(printed) == PROMISES
    assert [promise for promise, row in printed.items() if "tests/" not in row] == []


@pytest.mark.parametrize("page", NAMING_TESTS)
def test_every_test_that_is_named_exists(page: str) -> None:
    folder = (REPOSITORY / page).parent
    missing = []
    for name, cut, file in _LINKED_TEST.findall((REPOSITORY / page).read_text()):
        ending = "" if cut else r"\("
        source = folder / file
        if not source.exists() or not re.search(rf"^(async )?def {name}{ending}", source.read_text(), re.MULTILINE):
            missing.append(f"{file}: {name}")
    assert missing == []


@pytest.mark.parametrize("page", NAMING_TESTS)
def test_every_file_that_is_linked_exists(page: str) -> None:
    folder = (REPOSITORY / page).parent
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (REPOSITORY / page).read_text())
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_threat_says_what_stops_it_and_which_test_shows_that() -> None:
    table = (REPOSITORY / "docs" / "security.md").read_text().partition("\n## Threats\n")[2]
    found = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(found) > 20
    assert [row[0] for row in found if len(row) != 3 or not row[1].strip() or not _LINKED_TEST.search(row[2])] == []
