"""Lightning's loops, stopped after every single step: what follows is what an undisturbed run does."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from checkpoint_sidecar import ConfigurationError, SavePolicy, Terminated, open_run
from checkpoint_sidecar.core.run import SnapshotState
from frameworks.gangs import committed
from training.resuming import differences

SAMPLES: Any = [torch.full((4,), float(each)) for each in range(20)]

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)


class Model(LightningModule):
    """Notes what it is trained with: steps, epochs, samples and losses, whatever is random included."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen: list[tuple[Any, ...]] = []

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(batch).square().mean()
        self.seen.append((self.global_step, self.current_epoch, index, loss.item(), batch[:, 0].tolist()))
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        loss = self.net(batch).square().mean()
        if not self.trainer.sanity_checking:
            self.seen.append(("validation", index, loss.item()))
        self.log("val_loss", loss)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Stop(Exception):  # noqa: N818 - it stands for the end of a pod
    """The pod is gone."""


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            raise Stop


class Run:
    """A run of 15 batches below a folder, or of as many as ``options`` of the trainer say."""

    def __init__(self, folder: Path, *, loader: type[DataLoader[Any]] = StatefulDataLoader, **options: Any) -> None:
        self.url = (folder / "run").as_uri()
        self.folder = folder
        self._loader = loader
        self._workers = options.pop("workers", 0)
        self._validates = options.pop("validates", False)
        self._options = {"max_epochs": 3} | options

    def fit(self, *callbacks: Callback, every: int = 1, ckpt_path: str | None = None, **options: Any) -> Trainer:
        from checkpoint_sidecar.integrations.lightning import SnapshotCallback, with_snapshots

        seed_everything(7, verbose=False)
        save = SavePolicy(every_steps=every, every_seconds=None)
        self.model = Model()
        self.trainer = Trainer(
            accelerator="cpu",
            strategy=with_snapshots(SingleDeviceStrategy("cpu")),
            callbacks=[*callbacks, SnapshotCallback(self.url, save=save)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder,
            **self._options | options,
        )
        loader: Any = self._loader
        train = loader(SAMPLES, batch_size=4, shuffle=True, num_workers=self._workers)
        validation: Any = DataLoader(SAMPLES, batch_size=10) if self._validates else None
        self.trainer.fit(self.model, train, validation, ckpt_path=ckpt_path)
        return self.trainer

    def final(self) -> Any:
        return {
            "weights": self.model.state_dict(),
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "scheduler": self.trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        }


LOOPS: dict[str, dict[str, Any]] = {
    "epochs": {},
    "steps": {"max_epochs": -1, "max_steps": 12},
    "epochs with validation": {"validates": True},
    "validation within epochs": {"validates": True, "val_check_interval": 2},
    "steps with validation": {"max_epochs": -1, "max_steps": 12, "validates": True},
    "steps with validation within epochs": {
        "max_epochs": -1,
        "max_steps": 12,
        "validates": True,
        "val_check_interval": 2,
    },
    "accumulated gradients": {"accumulate_grad_batches": 2},
    "a worker that loads": {"workers": 1, "max_epochs": 2},
}


@pytest.mark.parametrize("options", LOOPS.values(), ids=LOOPS)
def test_a_run_stopped_after_every_step_ends_like_an_undisturbed_one(tmp_path: Path, options: dict[str, Any]) -> None:
    undisturbed, stopped = Run(tmp_path / "undisturbed", **options), Run(tmp_path / "stopped", **options)
    last = undisturbed.fit().global_step
    seen = []
    for step in range(1, last):
        with pytest.raises(Stop):
            stopped.fit(StopAt(step))
        seen += stopped.model.seen
    stopped.fit()
    assert seen + stopped.model.seen == undisturbed.model.seen
    assert not list(differences(undisturbed.final(), stopped.final()))
    assert committed(stopped.url) == list(range(1, last + 1))


def test_a_loader_without_state_resumes_exactly_at_the_ends_of_epochs(tmp_path: Path) -> None:
    undisturbed, stopped = (Run(tmp_path / name, loader=DataLoader) for name in ("undisturbed", "stopped"))
    undisturbed.fit()
    seen = []
    for step in (5, 10):
        with pytest.raises(Stop):
            stopped.fit(StopAt(step))
        seen += stopped.model.seen
    stopped.fit()
    assert seen + stopped.model.seen == undisturbed.model.seen


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    undisturbed, longer = Run(tmp_path / "undisturbed"), Run(tmp_path / "longer")
    undisturbed.fit()
    longer.fit(max_epochs=2)
    assert longer.fit(max_epochs=2).global_step == 10, "nothing is left to do"
    assert longer.model.seen == []
    longer.fit()
    assert not list(differences(undisturbed.final(), longer.final()))


def test_what_lightning_finds_for_last_does_not_matter(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.fit(max_epochs=1)
    run.fit(ckpt_path="last", max_epochs=2)
    assert [each[0] for each in run.model.seen] == [5, 6, 7, 8, 9]


class Terminate(Callback):
    """SIGTERM in the middle of a batch."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            signal.raise_signal(signal.SIGTERM)
            # A thread notices it, for which this batch may be too short.
            (callback,) = [each for each in trainer.callbacks if hasattr(each, "checkpointer")]
            while not callback.checkpointer.terminating:
                time.sleep(0.01)


@pytest.mark.parametrize("step", [2, 4, 9], ids=["within an epoch", "before a validation", "and before a later one"])
@pytest.mark.parametrize("limit", [{}, {"max_steps": 15, "max_epochs": -1}], ids=["epochs", "steps"])
def test_sigterm_is_answered_by_a_save_after_the_batch(tmp_path: Path, step: int, limit: dict[str, Any]) -> None:
    run = Run(tmp_path, validates=True, **limit)
    with pytest.raises(Terminated) as ended:
        run.fit(Terminate(step), every=1000)
    assert (ended.value.step, ended.value.saved_step) == (step + 1, step + 1)
    assert committed(run.url) == [step + 1]
    assert run.fit(every=1000).global_step == 15
    trained = [each for each in run.model.seen if each[0] != "validation"]
    assert [each[0] for each in trained] == list(range(step + 1, 15))
    samples = sorted(sample for each in trained[-5:] for sample in each[4])
    assert samples == list(range(20)), "an epoch has every sample once"


def test_an_exception_loses_no_save_that_was_under_way(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(Stop):
        run.fit(StopAt(4))
    assert committed(run.url) == [1, 2, 3, 4]


def files(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


def test_a_model_checkpoint_says_when_and_by_what_metric_and_deletes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, validates=True)
    chosen = ModelCheckpoint(tmp_path / "local", monitor="val_loss", save_top_k=1, every_n_epochs=1)
    trainer = run.fit(chosen, every=1000)
    snapshots = open_run(run.url).snapshots()
    losses = {snapshot.step: float(snapshot.commit.metrics["val_loss"]) for snapshot in snapshots}
    assert not [name for name in files(tmp_path) if not name.startswith("run/")], "Lightning wrote a file of its own"
    assert all(snapshot.state is SnapshotState.LIVE for snapshot in snapshots)
    best = min(losses, key=losses.__getitem__)
    expected = {name: value.clone() for name, value in run.model.state_dict().items()}
    for parameter in run.model.parameters():
        parameter.data.zero_()
    trainer.test(run.model, DataLoader(SAMPLES, batch_size=20), ckpt_path="best", verbose=False)
    assert any(value.any() for value in run.model.state_dict().values()), "weights were loaded"
    assert (not list(differences(expected, dict(run.model.state_dict())))) == (best == 15)


def test_another_start_loads_weights_by_address(tmp_path: Path) -> None:
    run = Run(tmp_path)
    trainer = run.fit()
    expected = {name: value.clone() for name, value in run.model.state_dict().items()}
    fresh = Model()
    trainer.validate(fresh, DataLoader(SAMPLES, batch_size=20), ckpt_path=f"{run.url}@15", verbose=False)
    assert not list(differences(expected, dict(fresh.state_dict())))


def test_lightnings_own_checkpoint_begins_a_run_that_has_none_and_no_other(tmp_path: Path) -> None:
    before = Run(tmp_path / "before")
    file = tmp_path / "before.ckpt"
    before.fit(max_epochs=1).save_checkpoint(file)
    assert torch.load(file, weights_only=False)["state_dict"].keys() == before.model.state_dict().keys()
    run = Run(tmp_path / "after")
    run.fit(ckpt_path=str(file), max_epochs=2)
    assert [each[0] for each in run.model.seen] == [5, 6, 7, 8, 9]
    run.fit(ckpt_path=str(file))
    assert [each[0] for each in run.model.seen] == [10, 11, 12, 13, 14]


def test_averaged_weights_resume_exactly(tmp_path: Path) -> None:
    undisturbed, stopped = Run(tmp_path / "undisturbed"), Run(tmp_path / "stopped")
    undisturbed.fit(WeightAveraging())
    with pytest.raises(Stop):
        stopped.fit(WeightAveraging(), StopAt(7))
    stopped.fit(WeightAveraging())
    # At the end of training Lightning has put the averages into the model.
    assert not list(differences(dict(undisturbed.model.state_dict()), dict(stopped.model.state_dict())))


def test_a_dry_run_touches_no_bucket(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.fit(fast_dev_run=2)
    assert not (tmp_path / "run").exists()


def test_a_strategy_that_would_write_files_of_its_own_is_refused(tmp_path: Path) -> None:
    from checkpoint_sidecar.integrations.lightning import SnapshotCallback, with_snapshots

    trainer = Trainer(accelerator="cpu", callbacks=[SnapshotCallback(tmp_path.as_uri())], logger=False)
    with pytest.raises(ConfigurationError, match="with_snapshots"):
        trainer.fit(Model(), DataLoader(SAMPLES))
    with pytest.raises(ConfigurationError, match="has registered none of this name"):
        with_snapshots("auto")
