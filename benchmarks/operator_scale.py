"""What the operator costs, by the number of Checkpoints: the real process, a real API server, an S3 server on loopback.

    make bench-operator                                               # 100 and 1,000 Checkpoints, 20 snapshots each
    PYTHONPATH=tests:tools .venv/bin/python benchmarks/operator_scale.py --quick

Phases of each fleet: the operator meets runs whose logs are full and whose Checkpoints are new (settle); nothing
happens (idle); it is started anew and meets all objects there are (restart); every run has a pod, and they commit in
turn at a steady rate (commits). Snapshots are verified by size; reading them back is switched off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any

import psutil
import typer
from kubernetes import client, config
from rich import box
from rich.console import Console
from rich.table import Table

import fleet
from checkpoint_sidecar.core import api
from localcluster import controlplane, network, workspace
from localcluster.client import ApiServer
from support.admission import checkpoint, pod
from watching_api import Latest, asked, latest, writes

RESULT = Path("build/bench/operator.json")
CRDS = Path(__file__).parents[1] / "crds"
PER_NAMESPACE = 100
CALM_REQUESTS = 0.2
"""Requests to the store for each Checkpoint between two polls: idle ones make half of that."""

POLL_SECONDS = 2.0
QUIET_SECONDS = 15.0
"""After so long without a write, everything is reported."""
MIB = 1024 * 1024

TARGETS = {
    "memory_mib": 400.0,
    "store_requests_per_idle_minute": 4.0,
    "reaction_p99_seconds": 5.0,
    "status_patches_per_commit": 1.0,
    "creates_per_commit": 1.0,
}


@dataclass(frozen=True)
class Measured:
    """One fleet.

    Attributes:
        settle_seconds: From the operator's start until the last write.
        memory_mib: The most resident memory of the operator in any phase.
        restart_cpu_seconds, restart_writes: Of another start, at which there is nothing to do but to look.
        idle_cores, busy_cores: CPU of the operator per second, while nothing happens and while runs commit.
        settle_writes, idle_writes, writes_per_commit: To the API server, by kind.
    """

    checkpoints: int
    snapshots: int
    settle_seconds: float
    settle_cpu_seconds: float
    settle_writes: dict[str, int]
    restart_cpu_seconds: float
    restart_writes: dict[str, int]
    restart_store_requests_per_checkpoint: float
    memory_mib: float
    store_requests_per_idle_minute: float
    idle_cores: float
    idle_writes: dict[str, int]
    commits: int
    commits_per_second: float
    busy_cores: float
    reaction_p50_seconds: float
    reaction_p99_seconds: float
    reaction_max_seconds: float
    status_patches_per_commit: float
    creates_per_commit: float
    writes_per_commit: dict[str, float]


class OperatorUnderTest:
    """The operator's process, for the whole cluster."""

    def __init__(self, server: ApiServer, log: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        command = [sys.executable, "-m", "checkpoint_operator", "--endpoint-allow=127.0.0.1", "--verify-rate=0"]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, env=environment | {"KUBECONFIG": str(server.kubeconfig)}, stdout=output, stderr=output
            )
        self._watched = psutil.Process(self._process.pid)

    def cpu_seconds(self) -> float:
        times = self._watched.cpu_times()
        return times.user + times.system

    def peak_mib(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)


def main(
    checkpoints: Annotated[list[int], typer.Option(help="Sizes of the fleets.")] = [100, 1000],  # noqa: B006
    snapshots: Annotated[int, typer.Option(help="Snapshots of each Checkpoint at the beginning.")] = 20,
    idle_seconds: Annotated[float, typer.Option(help="How long to watch it idle.")] = 120.0,
    commits: Annotated[int, typer.Option(help="How many to make.")] = 240,
    rate: Annotated[float, typer.Option(help="Commits per second, all Checkpoints together.")] = 3.0,
    quick: Annotated[bool, typer.Option(help="A look: 20 Checkpoints, a minute.")] = False,
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = RESULT,
) -> None:
    """Measure fleets of several sizes and print what they cost."""
    if quick:
        checkpoints, idle_seconds, commits = [20], 20.0, 30
    console, results = Console(), []
    output.parent.mkdir(parents=True, exist_ok=True)
    for count in checkpoints:
        with workspace.temporary("bench-operator") as place:
            server = controlplane.start(place, network.free_ports()).api
            server.kubectl("apply", "--server-side", f"--filename={CRDS}")
            server.kubectl("wait", "crd", "--for=condition=Established", "--all", "--timeout=30s")
            results.append(
                _measure(
                    server, count, snapshots, idle_seconds, commits, rate, log=output.parent / f"operator-{count}.log"
                )
            )
        console.print(_table(results))
        output.write_text(json.dumps(_report(results), indent=2) + "\n")


def _measure(
    server: ApiServer, count: int, snapshots: int, idle_seconds: float, commits: int, rate: float, *, log: Path
) -> Measured:
    runs = [(f"team-{number // PER_NAMESPACE}", f"run-{number}") for number in range(count)]
    say = Console(stderr=True).log
    with fleet.running(server.uid, runs, snapshots) as endpoint, latest(server) as shown:
        say(f"{count} runs are written")
        _create_checkpoints(server, endpoint, runs)
        before, began = asked(server), time.monotonic()
        with _operator(server, log) as operator:
            settled = _settled(server, lambda: len(shown.ready) == count) - began
            settle_writes, settle_cpu = writes(asked(server) - before), operator.cpu_seconds()
            say(f"settled after {settled:.0f} s, {settle_cpu:.0f} CPU seconds: {dict(settle_writes)}")
            peak = operator.peak_mib()
            idle = _idle(server, endpoint, operator, idle_seconds)
            say(f"idle: {idle}")
            peak = max(peak, operator.peak_mib())
        before, stored = asked(server), fleet.requests_of(endpoint).total()
        with _operator(server, log.with_suffix(".restarted.log")) as operator:
            _settled(server, _calm(endpoint, count))
            restart_writes, restart_cpu = writes(asked(server) - before), operator.cpu_seconds()
            restart_stored = (fleet.requests_of(endpoint).total() - stored) / count
            say(f"restarted: {restart_cpu:.0f} CPU seconds, {restart_stored:.1f} requests of the store for each")
            _create_pods(server, runs)
            _settled(server, lambda: True)
            busy = _commit(server, endpoint, operator, shown, runs, commits, rate)
            say(f"commits: {busy}")
            peak = max(peak, operator.peak_mib())
    return Measured(
        checkpoints=count,
        snapshots=snapshots,
        settle_seconds=round(settled, 1),
        settle_cpu_seconds=round(settle_cpu, 1),
        settle_writes=dict(settle_writes),
        restart_cpu_seconds=round(restart_cpu, 1),
        restart_writes=dict(restart_writes),
        restart_store_requests_per_checkpoint=round(restart_stored, 1),
        memory_mib=round(peak, 1),
        store_requests_per_idle_minute=round(idle["requests"] / count, 2),
        idle_cores=round(idle["cores"], 3),
        idle_writes=idle["writes"],
        **busy,
    )


@contextmanager
def _operator(server: ApiServer, log: Path) -> Iterator[OperatorUnderTest]:
    operator = OperatorUnderTest(server, log)
    try:
        yield operator
    finally:
        operator.stop()


def _create_checkpoints(server: ApiServer, endpoint: str, runs: list[tuple[str, str]]) -> None:
    for namespace in dict.fromkeys(namespace for namespace, _ in runs):
        server.kubectl("create", "namespace", namespace)
        server.kubectl("create", "serviceaccount", "default", f"--namespace={namespace}")
        keys = (
            "--from-literal=AWS_ACCESS_KEY_ID=fleet",
            "--from-literal=AWS_SECRET_ACCESS_KEY=secret-key-of-the-fleet",
        )
        server.kubectl("create", "secret", "generic", "s3-keys", f"--namespace={namespace}", *keys)
    custom = client.CustomObjectsApi(config.new_client_from_config(str(server.kubeconfig)))
    for namespace, name in runs:
        storage = {
            "url": f"s3://{fleet.BUCKET}/{namespace}/{name}",
            "endpoint": endpoint,
            "region": "us-east-1",
            "credentialsSecret": {"name": "s3-keys"},
        }
        body = checkpoint(name, storage=storage, save={"every": "10m"})
        custom.create_namespaced_custom_object(api.GROUP, api.VERSION, namespace, api.CHECKPOINT_PLURAL, body)


def _create_pods(server: ApiServer, runs: list[tuple[str, str]]) -> None:
    core = client.CoreV1Api(config.new_client_from_config(str(server.kubeconfig)))
    for namespace, name in runs:
        body = pod(name)
        body["metadata"]["name"] = name
        core.create_namespaced_pod(namespace, body)


def _settled(server: ApiServer, complete: Callable[[], bool]) -> float:
    """Wait for quiet; returns when the last write was seen."""
    known, changed_at = writes(asked(server)), time.monotonic()
    while not complete() or time.monotonic() - changed_at < QUIET_SECONDS:
        time.sleep(POLL_SECONDS)
        now = writes(asked(server))
        if now != known:
            known, changed_at = now, time.monotonic()
    return changed_at


def _calm(endpoint: str, count: int) -> Callable[[], bool]:
    """Whether the store has little to do, from one call to the next."""
    stored = fleet.requests_of(endpoint).total()

    def calm() -> bool:
        nonlocal stored
        before, stored = stored, fleet.requests_of(endpoint).total()
        return stored - before < CALM_REQUESTS * count

    return calm


def _idle(server: ApiServer, endpoint: str, operator: OperatorUnderTest, seconds: float) -> dict[str, Any]:
    written, stored = asked(server), fleet.requests_of(endpoint)
    cpu, began = operator.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    return {
        "requests": (fleet.requests_of(endpoint) - stored).total() / passed * 60,
        "cores": (operator.cpu_seconds() - cpu) / passed,
        "writes": dict(writes(asked(server) - written)),
    }


def _commit(
    server: ApiServer,
    endpoint: str,
    operator: OperatorUnderTest,
    shown: Latest,
    runs: list[tuple[str, str]],
    count: int,
    rate: float,
) -> dict[str, Any]:
    before, cpu, began = asked(server), operator.cpu_seconds(), time.monotonic()
    committed: dict[str, float] = {}
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        # In strides, so that neighbours in the operator's queue do not commit one after the other.
        identifier = fleet.commit(endpoint, *runs[number * 37 % len(runs)])
        committed[identifier] = time.monotonic()
    passed = time.monotonic() - began
    cores = (operator.cpu_seconds() - cpu) / passed
    _settled(server, lambda: committed.keys() <= shown.seen.keys())
    per_commit = Counter({what: round(n / count, 2) for what, n in writes(asked(server) - before).items()})
    reactions = [shown.seen[identifier] - at for identifier, at in committed.items()]
    percentiles = quantiles(reactions, n=100, method="inclusive")
    return {
        "commits": count,
        "commits_per_second": round(count / passed, 2),
        "busy_cores": round(cores, 3),
        "reaction_p50_seconds": round(percentiles[49], 2),
        "reaction_p99_seconds": round(percentiles[98], 2),
        "reaction_max_seconds": round(max(reactions), 2),
        "status_patches_per_commit": per_commit["patch Checkpoint/status"],
        "creates_per_commit": per_commit["create CheckpointSnapshot"],
        "writes_per_commit": dict(per_commit),
    }


def _report(results: list[Measured]) -> dict[str, Any]:
    machine = {"cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1)}
    missed = [
        {"checkpoints": each.checkpoints, "what": what, "value": getattr(each, what), "target": target}
        for each in results
        for what, target in TARGETS.items()
        if getattr(each, what) > target
    ]
    return {"machine": machine, "fleets": [asdict(each) for each in results], "missed": missed}


def _table(results: list[Measured]) -> Table:
    rows: dict[str, Callable[[Measured], str]] = {
        "snapshots": lambda it: f"{it.checkpoints * it.snapshots:,}",
        "settled after, s": lambda it: f"{it.settle_seconds:.0f}",
        "CPU s to settle": lambda it: f"{it.settle_cpu_seconds:.0f}",
        "API writes to settle": lambda it: f"{sum(it.settle_writes.values()):,}",
        "CPU s to start again": lambda it: f"{it.restart_cpu_seconds:.0f}",
        "API writes to start again": lambda it: f"{sum(it.restart_writes.values()):,}",
        "memory, MiB (400)": lambda it: f"{it.memory_mib:.0f}",
        "idle: store requests a minute each (4)": lambda it: f"{it.store_requests_per_idle_minute:.1f}",
        "idle: API writes": lambda it: f"{sum(it.idle_writes.values()):,}",
        "idle: cores": lambda it: f"{it.idle_cores:.2f}",
        "commits a second": lambda it: f"{it.commits_per_second:.1f}",
        "commit to status, s: p50": lambda it: f"{it.reaction_p50_seconds:.1f}",
        "commit to status, s: p99 (5)": lambda it: f"{it.reaction_p99_seconds:.1f}",
        "status patches a commit (1)": lambda it: f"{it.status_patches_per_commit:.2f}",
        "objects created a commit (1)": lambda it: f"{it.creates_per_commit:.2f}",
        "busy: cores": lambda it: f"{it.busy_cores:.2f}",
    }
    table = Table(title=f"the operator, {os.cpu_count()} cores (targets)", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Checkpoints")
    for each in results:
        table.add_column(f"{each.checkpoints:,}", justify="right")
    for title, value in rows.items():
        table.add_row(title, *map(value, results))
    return table


if __name__ == "__main__":
    typer.run(main)
