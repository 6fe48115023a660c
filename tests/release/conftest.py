"""A quick release of the checkout as it stands, made once; a whole one for `make test-release`."""

from __future__ import annotations

from pathlib import Path

import pytest

from release import build, facts
from release.__main__ import ROOT
from release.facts import Maintainer, Publisher, Release

PUBLISHER = Publisher(
    registry="registry.example.com/team",
    homepage="https://code.example.com/team/checkpoint-operator",
    builder="urn:builder:tests",
    maintainer=Maintainer("A Maintainer", "maintainer@example.com"),
)


@pytest.fixture(scope="session")
def made_from() -> Release:
    return facts.gather(ROOT, PUBLISHER, dirty=True)


@pytest.fixture(scope="session")
def quick(made_from: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a release without image, and with the plugin for one platform."""
    out = tmp_path_factory.mktemp("quick")
    build.build(ROOT, made_from, out, quick=True)
    return out


@pytest.fixture(scope="session")
def whole(made_from: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole release."""
    out = tmp_path_factory.mktemp("whole")
    build.build(ROOT, made_from, out, quick=False)
    return out
