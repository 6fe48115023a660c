"""Measures the command line: processes from start to exit, in seconds, and the requests that they make.

    PYTHONPATH=tests:tools .venv/bin/python benchmarks/cli.py [--snapshots 10000]

The run lies in an S3 server in another process on this machine, with the compactions that an operator writes. The
CPU time is that of the program, without waiting for other work on the machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import sink
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.policy import KeepBest, Policy, RetentionPolicy
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.opening import open_store
from doubles.memory import MemoryStore
from sink_s3 import KEEPING
from support.longlogs import compact, long_log

ALL = Policy(retention=RetentionPolicy(keep_every_steps=1, keep_best=(KeepBest("loss", "Min", 10),)))
ENTRIES_PER_SNAPSHOT = 2.03
REPEATS = 5
PROGRAM = str(Path(sys.executable).with_name("checkpoint"))
IDENTITY = {"AWS_ACCESS_KEY_ID": "a-key-id", "AWS_SECRET_ACCESS_KEY": "a-secret-key"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=10_000)
    count = parser.parse_args().snapshots
    print(f"{'':32}{'s':>8}{'CPU s':>8}{'requests':>10}")
    with sink.running() as endpoint:
        url = f"s3://{KEEPING}/run"
        os.environ.update(IDENTITY, CHECKPOINT_ENDPOINT=endpoint, CHECKPOINT_REGION="us-east-1")
        _fill(url, endpoint, count)
        _measure("--help", endpoint, "--help")
        _measure("report --help", endpoint, "report", "--help")
        for verb in ("ls", "show", "status"):
            _measure(f"{verb}, {count:,} snapshots", endpoint, verb, url)


def _fill(url: str, endpoint: str, count: int) -> None:
    """Write what a reader of the log touches: its compactions, made in memory, and its newest entries."""
    made = MemoryStore()
    for entry in long_log(round(count * ENTRIES_PER_SNAPSHOT), policy=ALL):
        made.put(layout.log_key(entry.number), entry.data)
    compact(made)
    store = open_store(StoreSettings(url, endpoint=endpoint, region="us-east-1"))
    newest = list(made.list(layout.LOG_FOLDER))[-400:]
    for info in (*made.list(layout.COMPACTION_FOLDER), *newest):
        store.put(info.key, made.get(info.key, max_bytes=2**30).data)


def _measure(title: str, endpoint: str, *arguments: str) -> None:
    _once(arguments)  # compiles what it imports, as an installation does
    before = sink.counts_of(endpoint).requests
    times = [_once(arguments) for _ in range(REPEATS)]
    requests = (sink.counts_of(endpoint).requests - before - 1) / REPEATS
    seconds, cpu = (statistics.median(each) for each in zip(*times, strict=True))
    print(f"{title:32}{seconds:8.2f}{cpu:8.2f}{requests:10.0f}")


def _once(arguments: tuple[str, ...]) -> tuple[float, float]:
    started, cpu = time.perf_counter(), _cpu()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([PROGRAM, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started, _cpu() - cpu


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
