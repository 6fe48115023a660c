"""docs/conditions.md explains every condition, reason and Event that the operator can write, and no others."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from checkpoint_operator.model.observed import Observed
from checkpoint_operator.report.checks import ConditionCheck
from checkpoint_sidecar.core.api import ConditionType, EventReason, Reason, SnapshotReason
from checkpoint_sidecar.core.errors import Evidence

PAGE = (Path(__file__).parents[2] / "docs" / "conditions.md").read_text()
CHECKPOINT, SNAPSHOT, EVENTS = (
    "## Conditions of a Checkpoint\n",
    "## Conditions of a CheckpointSnapshot\n",
    "## Events\n",
)


def section(heading: str) -> str:
    """What stands between a heading of the second level and the next."""
    return PAGE.partition(heading)[2].partition("\n## ")[0]


def explained(heading: str, *, column: int) -> list[str]:
    """What has a row of its own whose other columns are not empty."""
    rows = (line.split("|") for line in section(heading).splitlines() if line.startswith("| "))
    found = ((re.fullmatch(r"`(\w+)`", row[column].strip()), row) for row in rows)
    return [name[1] for name, row in found if name and row[3].strip()]


@pytest.mark.parametrize(
    ("heading", "column", "reasons"),
    [
        pytest.param(CHECKPOINT, 2, list(Reason), id="Checkpoint"),
        pytest.param(
            SNAPSHOT, 2, [*SnapshotReason, *(each for each in get_args(Evidence) if each != "None")], id="snapshot"
        ),
        pytest.param(EVENTS, 1, list(EventReason), id="Events"),
    ],
)
def test_every_reason_is_explained_and_no_other(heading: str, column: int, reasons: Iterable[str]) -> None:
    assert sorted(set(explained(heading, column=column))) == sorted(map(str, reasons))


def test_every_type_of_condition_has_a_heading_under_its_kind() -> None:
    headings = [*re.findall(r"^### (\w+)", section(CHECKPOINT) + section(SNAPSHOT), re.MULTILINE)]
    assert sorted(set(headings)) == sorted(map(str, ConditionType))


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", Path(__file__).parents[2] / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_rows_of_a_condition_are_generated_from_its_checks_and_the_words_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate = generator()
    assert generate.conditions_page(PAGE) == PAGE
    first, *others = generate.CHAINS[ConditionType.PROTECTED]
    added: ConditionCheck[Observed] = ConditionCheck("added", "False", (Reason.DRY_RUN,), lambda _: None)
    changed = {**generate.CHAINS, ConditionType.PROTECTED: (added, *others[1:], first)}
    monkeypatch.setattr(generate, "CHAINS", changed)
    protected = generate.conditions_page(PAGE).partition("### Protected\n")[2].partition("\n### ")[0]
    rows = [line for line in protected.splitlines() if line.startswith("| ")][2:]
    assert [re.findall(r"`(\w+)`", row)[0] for row in rows] == [
        "DryRun",
        "NotVerified",
        "SnapshotTooOld",
        "GracePeriodTooShort",
        "RecentSnapshot",
        "NotRunning",
    ]
    assert rows[0] == "| False | `DryRun` | | |"
    assert set(rows[1:]) < set(PAGE.splitlines())


def test_the_rows_of_a_snapshots_conditions_are_generated_from_its_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = generator()
    shorter = {ConditionType.READY: generate.SNAPSHOT_CHAINS[ConditionType.READY][4:]}
    monkeypatch.setattr(generate, "SNAPSHOT_CHAINS", shorter)
    ready = generate.conditions_page(PAGE).partition("### Ready (of a snapshot)\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \w+ \| `(\w+)`", ready, re.MULTILINE)
    assert rows == ["Quarantined", "Superseded", "RetireRefused", "Restorable"]


def test_links_lead_to_headings_that_exist() -> None:
    folder = Path(__file__).parents[2] / "docs"
    for page, anchor in re.findall(r"\]\(([\w.]+)#([\w-]+)\)", PAGE):
        titles = re.findall(r"^#+ (.+)$", (folder / page).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert anchor in anchors, f"{page}#{anchor}"
