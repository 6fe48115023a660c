"""Whatever happens to a cluster, `down` leaves nothing of it. Each test has a cluster of its own, beside any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster import cgroups, requirements
from localcluster import cluster as localcluster
from localcluster.fixtures import require
from localcluster.workspace import Workspace

pytestmark = pytest.mark.cluster


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    require(requirements.cluster_problem())
    place = Workspace(tmp_path / "cluster")
    yield place
    place.erase()


def command_line(*arguments: str, place: Workspace) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "localcluster", *arguments, "--directory", str(place.directory)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(*arguments: str, place: Workspace) -> str:
    process = command_line(*arguments, place=place)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return printed


def traces(place: Workspace) -> list[str]:
    """Everything that is left of a cluster: processes, control groups, mounts, files."""
    found = [f"process {pid}" for pid in cgroups.processes(place.cgroup)]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(place.directory).encode() in (folder / "cmdline").read_bytes() and folder.name != str(os.getpid()):
                found.append(f"process {folder.name}")
        except OSError:
            continue
    found += [f"group {top / place.cgroup}" for top in cgroups.hierarchies() if (top / place.cgroup).exists()]
    found += [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if str(place.directory) in line]
    return found + ([f"folder {place.directory}"] if place.directory.exists() else [])


def start_pods(cluster: localcluster.Cluster) -> None:
    for node in cluster.node_names:
        override = f'{{"spec": {{"hostNetwork": true, "nodeName": "{node}"}}}}'
        cluster.kubectl("run", f"pause-{node}", "--image=localhost/pause:1", f"--overrides={override}")
    cluster.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")


def test_down_leaves_nothing(place: Workspace) -> None:
    assert "nodes node-a, node-b are ready" in run("up", place=place)
    assert "up already" in run("up", place=place)
    assert "node-b        ready" in run("status", place=place)
    cluster = localcluster.load(place.directory)
    assert run("kubeconfig", place=place).strip() == str(cluster.kubeconfig)
    assert f"export AWS_ENDPOINT_URL={cluster.object_store.endpoint}" in run("env", place=place)
    start_pods(cluster)
    run("down", place=place)
    assert traces(place) == []


@pytest.mark.evictions
def test_down_leaves_nothing_of_a_cluster_whose_every_daemon_was_killed(place: Workspace) -> None:
    cluster = localcluster.up(place)
    start_pods(cluster)
    for daemon in place.daemons.all():
        assert daemon.identity is not None
        daemon.identity.send(signal.SIGKILL)
    run("down", place=place)
    assert traces(place) == []


@pytest.mark.evictions
def test_down_leaves_nothing_of_a_start_that_was_killed(place: Workspace) -> None:
    starting = command_line("up", place=place)
    while not cgroups.processes(place.cgroup):
        assert starting.poll() is None
        time.sleep(0.05)
    starting.kill()
    starting.wait()
    assert traces(place) != []
    run("down", place=place)
    assert traces(place) == []


def test_down_without_a_cluster_is_fine(place: Workspace) -> None:
    run("down", place=place)
    assert traces(place) == []


def test_status_without_a_cluster_says_so(place: Workspace) -> None:
    process = command_line("status", place=place)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"no cluster in {place.directory}" in printed
