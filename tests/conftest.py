"""Fixtures for all tests, and the order in which they run: what fails fastest and cheapest comes first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

pytest_plugins = ["localcluster.fixtures"]

# A busy machine is no defect of what is tested: no example fails for the time that it takes. The everyday run draws the
# same examples everywhere, where `CI` is set and where it is not; the long one draws new ones.
settings.register_profile(
    "everyday",
    deadline=None,
    derandomize=os.environ.get("CHECKPOINT_FAULTS") != "long",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("everyday")

COSTLIER = ("browser", "store", "distributed", "api", "cluster")
"""Markers of tests that need more than this process, cheapest first; unmarked ones come before them all."""
SLOW = (
    "alerts",
    "benchmarks",
    "cli/test_program.py",
    "control/test_writable_status.py",
    "crashes",
    "docs/test_python_blocks.py",
    "docs/test_site.py",
    "exports/test_export.py",
    "exports/test_reading.py",
    "localcluster_tests",
    "model",
    "release/test_files.py",
    "release/test_wheel.py",
    "report",
    "store/test_answers.py",
    "store/test_conformance.py",
    "store/test_conformance_command.py",
    "store/test_endpoints_of_the_environment.py",
    "store/test_hostile_environment.py",
    "store/test_http_connections.py",
    "store/test_models_through_filesystems.py",
    "store/test_redirects.py",
    "training",
)
"""Tests that take long without an S3 server: they train, draw thousands of histories, or wait for a process or server
of their own, which is silent, slow or wrong."""
TOGETHER = {
    "cluster": "cluster",
    "demo": "cluster",
    "localcluster_tests": "cluster",
    "api": "api",
    "crashes": "crashes",
}
"""Folders that one worker runs as a whole: they share a cluster or an API server with the chart, or fill one table. The
rest goes file by file."""
ON_REQUEST = ("evictions", "frameworks", "release", "workloads")
"""Markers of tests that take minutes and run only when the marker is asked for: `pytest -m release`."""
WHOLE_FOLDERS = ("frameworks", "workloads")
"""Folders whose tests all have the marker of that name."""
LONG_SECONDS = 1200
"""Time limit of a test there: it starts many processes, each of which imports a trainer for ten seconds or a minute."""
FEW = 2
"""Workers that all go from costly tests to cheap ones."""
COSTS = pytest.StashKey[dict[str, int]]()
"""Of each unit, as `_cost`."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out folders whose tests import what only they need installed."""
    unasked = collection_path.name in WHOLE_FOLDERS and collection_path.parent == Path(__file__).parent
    return True if unasked and collection_path.name not in config.getoption("markexpr") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _unit(item.nodeid).removeprefix("tests/").startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if item.path.parent.name in WHOLE_FOLDERS:
            item.add_marker(item.path.parent.name)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LONG_SECONDS))
    unasked = [marker for marker in ON_REQUEST if marker not in config.getoption("markexpr")]
    left_out = {item for item in items if any(item.get_closest_marker(marker) for marker in unasked)}
    config.hook.pytest_deselected(items=list(left_out))
    # The demo needs the cluster as it is before the tests of the cluster install the operator.
    kept = sorted((item for item in items if item not in left_out), key=lambda item: item.path.parent.name != "demo")
    items[:] = sorted(kept, key=_cost)
    config.stash[COSTS] = {_unit(item.nodeid): _cost(item) for item in items}  # the last item in each is its costliest
    if hasattr(config, "workerinput"):
        # What takes minutes and mostly waits begins first; what is short fills the gaps at the end.
        items.sort(key=lambda item: -config.stash[COSTS][_unit(item.nodeid)])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """End a cluster or an API server after its last test: a worker goes from costly units to cheap ones."""
    yield
    if nextitem is not None:
        cost = item.config.stash[COSTS][_unit(nextitem.nodeid)]
        from localcluster.fixtures import end  # a plugin is imported by pytest, which rewrites its assertions

        end(item.config, {marker for marker in COSTLIER if cost < _rank(marker)})


def _cost(item: pytest.Item) -> int:
    return max((_rank(marker) for marker in COSTLIER if item.get_closest_marker(marker)), default=0)


def _rank(marker: str) -> int:
    return COSTLIER.index(marker) + 1


def _unit(nodeid: str) -> str:
    path = PurePosixPath(nodeid.partition("::")[0])
    return TOGETHER.get(path.parent.name, str(path))


class WholeUnits(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each worker, whenever it is about to run out, the next unit; one of many workers gets the last one instead.

    What is costly mostly waits, what is cheap computes: the one at the cheap end keeps the processors busy meanwhile.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _unit(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if len(self.nodes) > FEW and node is self.nodes[-1]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


# The marker xdist_group would say the same, but pytest-xdist 3.8 writes it into a field that pytest 9 does not read.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WholeUnits:
    return WholeUnits(config, log)
