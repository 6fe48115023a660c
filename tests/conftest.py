"""Fixtures for all tests, and the order in which they run: what fails fastest and cheapest comes first."""

from __future__ import annotations

import pytest

pytest_plugins = ["localcluster.fixtures"]

COSTLIER = ("store", "distributed", "api", "cluster")
"""Markers of tests that need more than this process, cheapest first; unmarked ones come before them all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_cost)


def _cost(item: pytest.Item) -> int:
    return max((rank for rank, marker in enumerate(COSTLIER, start=1) if item.get_closest_marker(marker)), default=0)
