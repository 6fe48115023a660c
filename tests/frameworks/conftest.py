"""Tests of the adapters with the real trainers: `make test-frameworks` installs those, and runs only these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if FOLDER in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.frameworks)
    if here and "frameworks" not in config.getoption("markexpr"):
        items[:] = [item for item in items if FOLDER not in item.path.parents]
        config.hook.pytest_deselected(items=here)
