"""A browser for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.browser import Browser, browser, problem


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if reason := problem():
        pytest.skip(reason)
    with browser(tmp_path_factory.mktemp("chromium")) as window:
        yield window
