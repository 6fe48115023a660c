"""Measures what ``save.unchanged`` saves where most of a model stays, and what it costs where nothing does.

    PYTHONPATH=tests:tools .venv/bin/python benchmarks/unchanged.py [--megabytes 500] [--rounds 8]

One process saves the same state by turns with Send, Copy and Share, to an S3 server that costs nearly nothing and says
the checksum of each copy. The state is trained before each round of saves. The first two saves of each are not
counted: they send everything, or open connections.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import llama
import sink
from checkpoint_sidecar import Checkpointer, SavePolicy
from checkpoint_sidecar.core.log import SnapshotCommitted
from checkpoint_sidecar.core.policy import UnchangedPolicy
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from measuring import cpu_seconds
from sink_s3 import KEEPING

_ADAPTED = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")


@dataclass(frozen=True)
class Trained:
    """A state, and a function that changes it as a step of training does."""

    state: dict[str, Any]
    step: Callable[[], None]


def lora(megabytes: int, rank: int = 8) -> Trained:
    """The model stays in bfloat16; the attention layers have adapters in float32."""
    model = model_of(megabytes, torch.bfloat16)
    model.requires_grad_(False)
    for name, shape in llama.shapes(megabytes * 1_000_000).items():
        if any(each in name for each in _ADAPTED):
            model.register_parameter(f"{_flat(name)}_down", nn.Parameter(torch.randn(rank, shape[1])))
            model.register_parameter(f"{_flat(name)}_up", nn.Parameter(torch.zeros(shape[0], rank)))
    return trained(model)


def tower(megabytes: int) -> Trained:
    """Of the model, in float32 with the moments of Adam, half of the layers stay."""
    model = model_of(megabytes // 2, torch.float32)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    return trained(model)


def dense(megabytes: int) -> Trained:
    """Every parameter, in float32, is trained by Adam."""
    return trained(model_of(megabytes // 6, torch.float32))


STATES: dict[str, Callable[[int], Trained]] = {
    "LoRA, rank 8, attention": lora,
    "frozen tower, half": tower,
    "dense, AdamW": dense,
}


def model_of(megabytes: int, dtype: torch.dtype) -> nn.Module:
    """The tensors of a Llama that takes this much in bfloat16."""
    model = nn.Module()
    state = llama.whole(llama.shapes(megabytes * 1_000_000))
    llama.fill(state)
    for name, value in state.items():
        model.register_parameter(_flat(name), nn.Parameter(value.to(dtype)))
    return model


def trained(model: nn.Module) -> Trained:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()

    step()
    return Trained({"model": model, "optim": optimizer}, step)


def _flat(name: str) -> str:
    return name.replace(".", "_")


@dataclass(frozen=True)
class Save:
    """What one save took, and the parts of its bytes that were sent, and that are stored in its own folder."""

    seconds: float
    cpu_seconds: float
    sent: float
    stored: float


WAYS: tuple[UnchangedPolicy, ...] = ("Send", "Copy", "Share")


def measured(trained: Trained, settings: StoreSettings, rounds: int) -> Iterator[tuple[Save, ...]]:
    """Yield a save of the same state in each of the ways."""
    with ExitStack() as opened:
        checkpointers = []
        for way in WAYS:
            place = replace(settings, url=f"{settings.url}/{way}")
            policy = SavePolicy(every_steps=None, every_seconds=None, unchanged=way)
            checkpointer = opened.enter_context(Checkpointer(trained.state, place, save=policy))
            checkpointer.restore()
            checkpointers.append(checkpointer)
        for number in range(1, rounds + 1):
            trained.step()
            found = {}
            # By turns, because a later one finds warmer caches.
            for which in range(len(WAYS)) if number % 2 else reversed(range(len(WAYS))):
                began, cpu_began = time.perf_counter(), cpu_seconds()
                checkpointers[which].save(number)
                seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
                commit = last_commit(checkpointers[which])
                stored = commit.bytes - commit.shared_bytes
                sent = (stored - commit.copied_bytes) / commit.bytes
                found[which] = Save(seconds, cpu, sent, stored / commit.bytes)
            yield tuple(found[which] for which in range(len(WAYS)))


def last_commit(checkpointer: Checkpointer) -> SnapshotCommitted:
    run = checkpointer._led.log.run
    return max(run.snapshots.values(), key=lambda snapshot: snapshot.step).commit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    columns = f"{'2nd save sends':>14} {'stores':>7} {'time':>8} {'of Send':>8} {'CPU':>7} {'CPU of all saves':>17}"
    print(f"{'state':<26} {'way':<6} {columns}")
    for name, state in STATES.items():
        with sink.running() as endpoint:
            credentials = Credentials.of({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"})
            settings = StoreSettings(f"s3://{KEEPING}/run", endpoint, "us-east-1", credentials=credentials)
            rounds = list(measured(state(arguments.megabytes), settings, arguments.rounds))
        for number, way in enumerate(WAYS):
            print(f"{name:<26} {way:<6} {_row(rounds, number)}", flush=True)


def _row(rounds: list[tuple[Save, ...]], way: int) -> str:
    second, counted = rounds[1][way], rounds[2:]
    seconds, of_send = (statistics.median(each[which].seconds for each in counted) for which in (way, 0))
    cpu = statistics.median(each[way].cpu_seconds / each[0].cpu_seconds for each in counted)
    # The sum over all saves but the first: what is hashed in some of them is not lost in the median.
    whole = sum(each[way].cpu_seconds for each in rounds[1:]) / sum(each[0].cpu_seconds for each in rounds[1:])
    figures = f"{second.sent:>14.1%} {second.stored:>7.1%} {seconds:>6.2f} s {seconds / of_send:>8.0%}"
    return f"{figures} {cpu:>7.0%} {whole:>17.0%}"


if __name__ == "__main__":
    main()
