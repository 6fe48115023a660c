"""The Grafana dashboard holds only fields that Grafana's own schema knows, and its panels lie side by side."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "charts" / "checkpoint-operator" / "files" / "dashboard.json").read_text()
)
_COLUMNS = 24
"""Width of a dashboard in Grafana's grid."""


def as_grafana_reads(dashboard: dict[str, Any]) -> Any:
    """The dashboard after a round trip through the types that are generated from Grafana's schema."""
    plugins.register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(dashboard))))


def ignored(given: Any, read: Any, path: str = "") -> Iterator[str]:
    """Everything in ``given`` that ``read`` lacks or has otherwise; ``read`` may add defaults."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from ignored(value, read[key], f"{path}/{key}") if key in read else iter([f"{path}/{key}"])
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from ignored(one, other, f"{path}/{index}")
    elif given != read:
        yield path


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    assert list(ignored(DASHBOARD, as_grafana_reads(DASHBOARD))) == []


def test_a_field_that_grafana_does_not_know_is_noticed() -> None:
    wrong = copy.deepcopy(DASHBOARD)
    wrong["panels"][0]["targets"][0]["expression"] = "up"
    wrong["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    wrong["refreshes"] = "30s"
    assert sorted(ignored(wrong, as_grafana_reads(wrong))) == [
        "/panels/0/targets/0/expression",
        "/panels/1/fieldConfig/defaults/units",
        "/refreshes",
    ]


def test_panels_fill_the_grid_without_overlaps_and_have_ids_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= _COLUMNS for place in places)
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_panels_query_the_data_source_that_the_reader_chooses() -> None:
    (source,) = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource"]
    wanted = {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    assert {json.dumps(panel["datasource"], sort_keys=True) for panel in DASHBOARD["panels"]} == {
        json.dumps(wanted, sort_keys=True)
    }
