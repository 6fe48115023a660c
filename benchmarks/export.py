"""Measures exports of a snapshot against a load of it: seconds, their ratio, memory, and the bytes that it moves.

    PYTHONPATH=tests:tools .venv/bin/python benchmarks/export.py [--quick]

One process saves a Llama-shaped model of 2.47 GB (0.3 GB with --quick) to an S3 server that costs nearly nothing and
drops what is exported to it, so that the figures are those of the client.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import llama
import sink
from checkpoint_sidecar import Checkpointer, export, load
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.store.http.connections import Connections
from measuring import PeakMemory
from sink_s3 import DROPPING, KEEPING

FULL_BYTES, QUICK_BYTES = 2_472_000_000, 300_000_000

moved = {"sent": 0, "received": 0}
"""Bytes of bodies of this process's requests."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    _count_bytes()
    with sink.running() as endpoint, tempfile.TemporaryDirectory() as folder:
        credentials = Credentials.of({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"})
        settings = StoreSettings(f"s3://{KEEPING}/run", endpoint, "us-east-1", credentials=credentials)
        model = _model(QUICK_BYTES if arguments.quick else FULL_BYTES)
        size = sum(parameter.nbytes for parameter in model.parameters())
        with Checkpointer({"model": model}, settings) as checkpointer:
            checkpointer.restore()
            checkpointer.save(1)

        def to(url: str, **options: Any) -> Callable[[int], object]:
            def run(number: int) -> object:
                target = f"{url}-{number}"
                there: Any = replace(settings, url=target) if target.startswith("s3:") else target
                return export(settings, there, **options)

            return run

        base = _timed("load", size, lambda _: load(settings, into=model), arguments.repetitions)
        for name, run in {
            "export to S3, copied by the store": to(f"s3://{DROPPING}/copied"),
            "export to S3, read and sent": to(f"s3://{DROPPING}/sent", copies=False),
            "export to S3 as float32": to(f"s3://{DROPPING}/cast", dtype="float32"),
            "export to a folder": to(str(Path(folder, "out"))),
            "export to a folder as pt": to(str(Path(folder, "pt")), to="pt"),
        }.items():
            _timed(name, size, run, arguments.repetitions, base)


def _model(total_bytes: int) -> nn.Module:
    state = llama.whole(llama.shapes(total_bytes))
    llama.fill(state)
    model = nn.Module()
    for name, value in state.items():
        model.register_parameter(name.replace(".", "_"), nn.Parameter(value, requires_grad=False))
    return model


def _timed(name: str, size: int, run: Callable[[int], object], repetitions: int, base: float = 0.0) -> float:
    seconds = []
    memory = PeakMemory()
    for number in range(repetitions):
        moved.update(sent=0, received=0)
        began = time.perf_counter()
        run(number)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    ratio = f"{median / base:6.2f}x" if base else " " * 7
    share = f"{moved['sent'] / size:8.1%}{moved['received'] / size:10.1%}"
    rate, extra = f"{size / median / 1e9:6.2f} GB/s", f"{memory.extra_bytes() / 1e6:7.0f} MB"
    print(f"{name:36}{median:8.2f} s {ratio} {rate} {extra} {share}", flush=True)
    return median


def _count_bytes() -> None:
    exchange, lock = Connections.exchange, threading.Lock()

    def counting(self: Connections, request: Any, **options: Any) -> Any:
        answer = exchange(self, request, **options)
        with lock:
            moved["sent"] += sum(view.nbytes for view in request.body)
            moved["received"] += sum(view.nbytes for view in options.get("into", ()))
        return answer

    Connections.exchange = counting  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(f"{'':36}{'time':>10} {'/load':>7} {'rate':>11} {'memory':>10} {'sent':>8}{'received':>10}")
    main()
