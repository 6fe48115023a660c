"""Measures what the adapters of trainers add to a save: the same state through a Checkpointer, and through the adapter.

    PYTHONPATH=tests:tools .venv/bin/python benchmarks/adapters.py [--only torchtitan] [--megabytes 500]

Needs the group `frameworks`. One process saves by turns in both ways, to an S3 server that costs nearly nothing and
whose CPU is not counted. A save lasts from the call until the commit. The overhead is the median of the differences
between neighbors. Where the trainer writes files of its own into our storage, a third save writes them to a storage
that drops everything: that part is the trainer's, and the rest of the overhead is ours. Ray Train has no row: its
adapter saves through ``FileSnapshots``, and adds only what Ray's own ``report`` does with one small file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import llama
import sink
from checkpoint_sidecar import Checkpointer, RandomState, SavePolicy
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from sink_s3 import DROPPING

Save = Callable[[int], object]
"""Saves a step, and returns after the commit."""

EVERY_STEP = SavePolicy(every_steps=1, every_seconds=None)


@dataclass(frozen=True)
class Ways:
    """The same state, saved directly and through an adapter, and by the trainer alone, where it saves by itself."""

    direct: Save
    adapted: Save
    alone: Save | None = None


@contextmanager
def torchtitan(settings: StoreSettings, megabytes: int) -> Iterator[Ways]:
    from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw

    from checkpoint_sidecar.integrations.torchtitan import SnapshotManager, options

    def parts() -> tuple[nn.Module, Any, Any]:
        model = model_of(megabytes)
        optimizers = default_adamw(lr=0.1).build(model_parts=[model])
        schedulers = LRSchedulersContainer.Config(warmup_steps=2).build(optimizers=optimizers, training_steps=10)
        train(model, optimizers)
        return model, optimizers, schedulers

    counter = Counter()
    model, optimizers, schedulers = parts()
    state = {"dataloader": counter, "model": model, "optimizer": optimizers.optimizers[0]}
    state |= {"lr_scheduler": schedulers, "train_state": Counter()}
    opened = options.opened
    # The adapter opens its run by a URL; here it needs the sink's endpoint and credentials as well.
    options.opened = lambda given, *_: Checkpointer(
        given, replace(settings, url=f"{settings.url}/adapted"), save=EVERY_STEP
    )
    try:
        manager = SnapshotManager.Config(enable=True, interval=1).build(
            dataloader=counter,
            model_parts=[model],
            optimizers=optimizers,
            lr_schedulers=schedulers,
            states={"train_state": Counter()},
            sd_adapter=None,
        )
    finally:
        options.opened = opened
    manager.load()
    with Checkpointer(state, replace(settings, url=f"{settings.url}/direct"), save=EVERY_STEP) as checkpointer:
        checkpointer.restore()

        def direct(step: int) -> None:
            checkpointer.step(step)
            checkpointer.wait()

        def adapted(step: int) -> None:
            manager.save(step)
            manager._wait_for_saving()

        yield Ways(direct, adapted)
    manager.close()


@contextmanager
def accelerate(settings: StoreSettings, megabytes: int) -> Iterator[Ways]:
    from accelerate import Accelerator

    from checkpoint_sidecar.integrations.accelerate import accelerator_snapshots

    accelerator = Accelerator(cpu=True)
    model = model_of(megabytes)
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters()))
    train(model, optimizer)
    objects = {"model": model, "optimizer": optimizer, "accelerator": Counter(), "random": RandomState()}
    adapted = accelerator_snapshots(accelerator, replace(settings, url=f"{settings.url}/adapted"), save=EVERY_STEP)
    direct = Checkpointer(objects, replace(settings, url=f"{settings.url}/direct"), save=EVERY_STEP)
    with direct, adapted:
        direct.restore()
        adapted.restore()
        yield Ways(*(lambda step, each=each: (each.step(step), each.wait()) for each in (direct, adapted)))


@contextmanager
def transformers(settings: StoreSettings, megabytes: int) -> Iterator[Ways]:
    """The files that Trainer has written, through ``FileSnapshots`` and through the adapter."""
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from checkpoint_sidecar import FileSnapshots
    from checkpoint_sidecar.integrations.transformers import TrainerSnapshots

    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("direct", "adapted")]
        for output in outputs:
            written = output / "checkpoint-0"
            written.mkdir(parents=True)
            for name, thirds in (("model.safetensors", 1), ("optimizer.pt", 2)):
                torch.save(filled(thirds * megabytes * 1_000_000 // 3), written / name)
        arguments = TrainingArguments(str(outputs[1]), use_cpu=True, report_to=[])
        trainer = Trainer(nn.Linear(1, 1), arguments)
        adapter = TrainerSnapshots(trainer, replace(settings, url=f"{settings.url}/adapted"), save=EVERY_STEP)
        with (
            FileSnapshots(outputs[0], replace(settings, url=f"{settings.url}/direct"), save=EVERY_STEP) as files,
            adapter,
        ):
            files.restore()
            state = TrainerState(max_steps=1_000_000)

            def direct(step: int) -> None:
                os.rename(outputs[0] / f"checkpoint-{step - 1}", outputs[0] / f"checkpoint-{step}")
                files.step(step)
                files.save(step, paths=[f"checkpoint-{step}"], wait=True)

            def adapted(step: int) -> None:
                os.rename(outputs[1] / f"checkpoint-{step - 1}", outputs[1] / f"checkpoint-{step}")
                state.global_step = step
                adapter.on_step_end(arguments, state, TrainerControl())
                adapter.on_save(arguments, state, TrainerControl())
                adapter.wait()

            yield Ways(direct, adapted)


@contextmanager
def lightning(settings: StoreSettings, megabytes: int) -> Iterator[Ways]:
    """The callback's saves, without training: of Lightning's loops, only the count of steps increases."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import SingleDeviceStrategy

    from checkpoint_sidecar.integrations.lightning import SnapshotCallback, with_snapshots

    model = LightningModule()
    model.inner = model_of(megabytes)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    adapter = SnapshotCallback(replace(settings, url=f"{settings.url}/adapted"), save=EVERY_STEP)
    strategy = with_snapshots(SingleDeviceStrategy("cpu"))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", strategy=strategy, callbacks=[adapter], **quiet)
    strategy.connect(model)
    strategy.model, strategy.optimizers = model, [optimizer]
    model.trainer = trainer
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    adapter.setup(trainer, model, "fit")
    adapter.on_fit_start(trainer, model)
    objects = {"model": model, "optimizer_0": optimizer, "random": RandomState()}
    with Checkpointer(objects, replace(settings, url=f"{settings.url}/direct"), save=EVERY_STEP) as checkpointer:
        checkpointer.restore()

        def adapted(step: int) -> None:
            progress.completed = step
            adapter.save("")

        yield Ways(checkpointer.save, adapted)
    adapter.on_fit_end(trainer, model)


@contextmanager
def torch_checkpointing(settings: StoreSettings, megabytes: int) -> Iterator[Ways]:
    """Its synchronous saver, which writes files of its own into our storage: it adds its serialization as well."""
    from torch_checkpointing.checkpoint_manager import CheckpointManager

    from checkpoint_sidecar.integrations.torch_checkpointing import SnapshotRun
    from nowhere import NowhereConfig

    model = model_of(megabytes)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)

    def manager_of(storage_config: Any) -> CheckpointManager:
        config = CheckpointManager.Config.with_sync_save()
        config.storage_config = storage_config
        return config.build()

    with (
        SnapshotRun(replace(settings, url=f"{settings.url}/adapted")) as run,
        Checkpointer(
            {"model": model, "optimizer": optimizer}, replace(settings, url=f"{settings.url}/direct"), save=EVERY_STEP
        ) as checkpointer,
    ):
        managers = [manager_of(run.storage), manager_of(NowhereConfig())]
        run.restore(str)  # a fresh start loads nothing
        checkpointer.restore()

        def save_by(manager: CheckpointManager, step: int) -> None:
            manager.save(run.checkpoint(step), {"model": model.state_dict(), "optimizer": optimizer.state_dict()})

        yield Ways(checkpointer.save, *(partial(save_by, manager) for manager in managers))
        for manager in managers:
            manager.close()


ADAPTERS: dict[str, Callable[[StoreSettings, int], Any]] = {
    "accelerate": accelerate,
    "lightning": lightning,
    "torch_checkpointing": torch_checkpointing,
    "torchtitan": torchtitan,
    "transformers": transformers,
}
"""A context manager for each: given where to save and how much, it yields both ways."""


class Counter:
    def state_dict(self) -> dict[str, int]:
        return {"step": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def model_of(megabytes: int) -> nn.Module:
    """A Llama-shaped model that takes this much together with its Adam moments."""
    model = nn.Module()
    for name, value in filled(megabytes * 1_000_000 // 3).items():
        model.register_parameter(name.replace(".", "_"), nn.Parameter(value.float()))
    return model


def filled(total_bytes: int) -> dict[str, torch.Tensor]:
    state = llama.whole(llama.shapes(total_bytes // 2))
    llama.fill(state)
    return state


def train(model: nn.Module, optimizers: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step()
    optimizers.zero_grad()


def measured(ways: Ways, rounds: int) -> Iterator[list[tuple[float, float]]]:
    """Yield seconds and CPU seconds of one save in each way, after one of each that is not counted."""
    saves = [ways.direct, ways.adapted] + ([ways.alone] if ways.alone else [])
    for step in range(1, rounds + 2):
        found = {}
        # By turns, because whichever comes later finds warmer caches.
        for number in sorted(range(len(saves)), reverse=step % 2 == 0):
            began, cpu_began = time.perf_counter(), time.process_time()
            saves[number](step)
            found[number] = (time.perf_counter() - began, time.process_time() - cpu_began)
        if step > 1:
            yield [found[number] for number in range(len(saves))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ADAPTERS, nargs="*", default=list(ADAPTERS))
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    print(f"{'adapter':<20} {'Checkpointer':>14} {'adapter':>14} {'overhead':>15} {'trainer alone':>14} {'ours':>8}")
    for name in arguments.only:
        with sink.running() as endpoint, tempfile.TemporaryDirectory() as folder:
            dist.init_process_group("gloo", init_method=Path(folder, "group").as_uri(), rank=0, world_size=1)
            credentials = Credentials.of({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"})
            settings = StoreSettings(f"s3://{DROPPING}/{name}", endpoint, "us-east-1", credentials=credentials)
            with ADAPTERS[name](settings, arguments.megabytes) as ways:
                rounds = list(measured(ways, arguments.rounds))
            dist.destroy_process_group()
        for what, unit in enumerate(("s", "CPU s")):
            costs = [[cost[what] for cost in each] for each in rounds]
            direct, adapted = (statistics.median(each[way] for each in costs) for way in (0, 1))
            overhead = statistics.median(each[1] - each[0] for each in costs) / direct
            alone = statistics.median(sum(each[2:]) for each in costs) / direct
            shares = f"{overhead:>9.1%} {alone:>14.1%} {overhead - alone:>8.1%}"
            print(f"{name:<20} {direct:>8.3f} {unit:<5} {adapted:>8.3f} {unit:<5} {shares}", flush=True)


if __name__ == "__main__":
    main()
