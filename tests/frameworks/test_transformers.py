"""Hugging Face Trainer with our snapshots: real ranks, a real S3 server, real signals."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from checkpoint_sidecar import SavePolicy, open_run
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.policy import KeepBest, Policy, RetentionPolicy
from checkpoint_sidecar.integrations.transformers import TrainerSnapshots
from doubles.faulty_server import Fault, faulty_server
from frameworks.forked_gangs import gang, trained
from frameworks.gangs import EXAMPLES, committed
from localcluster.objectstore import ObjectStore

SCRIPT = EXAMPLES / "transformers_train.py"
ON_CPU = Path(__file__).parent / "fsdp_on_cpu.py"
STEPS = 6

pytestmark = [pytest.mark.store, pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def url(object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a run, with the environment of an injected pod."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CHECKPOINT_RUN", "c1/team/llama")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    return f"s3://{bucket}/llama"


def arguments(output: Path, *options: object) -> list[object]:
    return [SCRIPT, "--output", output, "--steps", STEPS, "--save-every", 2, *options]


def train(url: str, output: Path, *options: object, ranks: int = 2) -> list[str]:
    """The losses and the digest of the weights that a start prints."""
    output.mkdir(exist_ok=True)
    printed = trained(ON_CPU, *arguments(output, *options), folder=output.parent, ranks=ranks, CHECKPOINT_URL=url)
    return results(printed)


def results(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("step ", "weights "))]


def kill_in_the_save_of_step_4(url: str, store: ObjectStore, output: Path, *options: object) -> None:
    with faulty_server(store.endpoint) as server:
        server.faults = [Fault("PUT", "/step-4/", "keep silent", times=1_000)]
        with gang(
            ON_CPU,
            *arguments(output, *options),
            folder=output.parent,
            AWS_ENDPOINT_URL=server.endpoint,
            CHECKPOINT_URL=url,
        ) as started:
            started.until(lambda: server.faults[0].times < 1_000)
            started.signal(signal.SIGKILL)
            assert started.exits() == {-signal.SIGKILL}
    assert committed(url) == [2], "the save was in the middle"
    assert {path.name for path in output.glob("checkpoint-*")} & {"checkpoint-4", "checkpoint-6"}, "Trainer wrote it"


@pytest.mark.parametrize("options", [(), ("--fsdp",)], ids=["DDP", "FSDP2"])
def test_a_run_that_is_killed_in_a_save_and_then_terminated_ends_like_an_undisturbed_one(
    url: str, tmp_path: Path, object_store: ObjectStore, options: tuple[str, ...]
) -> None:
    expected = train(f"{url}-undisturbed", tmp_path / "undisturbed", *options)
    assert len(expected) == STEPS + 1
    output = tmp_path / "output"
    kill_in_the_save_of_step_4(url, object_store, output, *options)
    with gang(ON_CPU, *arguments(output, "--pause", 1, *options), folder=tmp_path, CHECKPOINT_URL=url) as started:
        started.until_printed("step 3:")
        started.processes[1].send_signal(signal.SIGTERM)  # as when only its node is drained
        assert started.exits() == {143}, started.output
        assert results(started.output) == expected[2 : 2 + len(results(started.output))], "not from 4"
        assert "which is saved" in started.output
    last = committed(url)[-1]
    assert last in (3, 4)
    assert open_run(url).snapshots()[-1].commit.trigger == "Termination"
    assert train(url, tmp_path / "another-node", *options) == expected[last:]
    assert committed(url)[-1] == STEPS


def test_a_run_that_was_finished_in_the_middle_of_an_epoch_trains_no_further_when_it_is_started_again(
    url: str, tmp_path: Path
) -> None:
    *_, weights = train(url, tmp_path / "output", "--steps", 4)
    for output in (tmp_path / "output", tmp_path / "another-node"):
        assert train(url, output, "--steps", 4) == [weights]
    assert committed(url) == [2, 4]
    assert train(url, tmp_path / "output", "--steps", 5)[0].startswith("step 5:"), "unless more steps are wanted"


def test_the_best_model_is_found_on_another_node_and_its_metric_is_in_the_log(
    url: str, tmp_path: Path, object_store: ObjectStore
) -> None:
    expected = train(f"{url}-undisturbed", tmp_path / "undisturbed", "--best")
    kill_in_the_save_of_step_4(url, object_store, tmp_path / "output", "--best")
    assert train(url, tmp_path / "another-node", "--best") == expected[2:]
    snapshots = open_run(url).snapshots()
    assert [snapshot.step for snapshot in snapshots] == [2, 4, 6]
    figures = {snapshot.step: float(snapshot.commit.metrics["eval_loss"]) for snapshot in snapshots}
    best = min(figures, key=lambda step: figures[step])
    left = {path.name for path in (tmp_path / "another-node").glob("checkpoint-*")}
    assert left == {f"checkpoint-{best}"}, "Trainer removed the others, which are in the bucket"
    stored = open_run(url)
    stored.configure(Policy(retention=RetentionPolicy(keep_last=1, keep_best=(KeepBest("eval_loss", "Min", 1),))))
    chosen = stored.best
    assert chosen is not None
    assert chosen.step == best
    assert chosen.id not in stored.retention().retire


@pytest.mark.parametrize("options", [(), ("--fsdp",)], ids=["DDP", "FSDP2"])
def test_a_signal_in_an_evaluation_is_answered_at_once_and_training_continues_as_if_undisturbed(
    url: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    script = Path(__file__).parent / "transformers_evicted.py"
    given = arguments(tmp_path / "output", "--evaluate", *options)
    expected = train(f"{url}-undisturbed", tmp_path / "undisturbed", "--evaluate", *options)
    with gang(script, *given, folder=tmp_path, CHECKPOINT_URL=url) as started:
        assert started.exits() == {143}, started.output
    assert started.output.count("evaluates step 2") < 8, "not all four batches of both ranks"
    assert committed(url) == [2]
    assert open_run(url).snapshots()[-1].commit.trigger == "Termination"
    assert train(url, tmp_path / "another-node", "--evaluate", *options) == expected[2:]


@pytest.mark.parametrize("options", [(), ("--fsdp",)], ids=["DDP", "FSDP2"])
def test_another_number_of_ranks_continues_with_the_same_checkpoint(
    url: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    two = arguments(tmp_path / "two", "--pause", 1, *options)
    with gang(ON_CPU, *two, folder=tmp_path, CHECKPOINT_URL=url) as started:
        started.until(lambda: committed_so_far(url) == [2])
        started.signal(signal.SIGKILL)
    one = train(url, tmp_path / "one", *options, ranks=1)
    assert [line.partition(":")[0] for line in one[:-1]] == ["step 3", "step 4", "step 5", "step 6"]
    assert train(url, tmp_path / "two-again", *options)[-1] == one[-1], "all is trained"


def committed_so_far(url: str) -> list[int]:
    try:
        return committed(url)
    except Exception:  # noqa: BLE001 - the run does not exist yet
        return []


# In this process: one rank, local files


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x) - labels).square().mean()}


class Written(TrainerCallback):
    """The steps at which Trainer wrote a checkpoint."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        self.steps.append(state.global_step)


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self._step = step
        self._action = action

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, control
        if state.global_step == self._step:
            self._action()


def trainer(output: Path, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    settings = {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4} | options
    data = [{"x": torch.tensor([index, 1.0]), "labels": torch.ones(1)} for index in range(12)]
    given = TrainingArguments(str(output), use_cpu=True, report_to=[], disable_tqdm=True, **settings)
    return Trainer(Model(), given, train_dataset=data, eval_dataset=data[:2], callbacks=list(callbacks))


def run(output: Path, url: str, *callbacks: TrainerCallback, save: SavePolicy | None = None, **options: Any) -> Trainer:
    made = trainer(output, *callbacks, **options)
    with TrainerSnapshots(made, url, save=save or SavePolicy(every_seconds=None)) as snapshots:
        made.train(resume_from_checkpoint=snapshots.checkpoint)
    return made


@pytest.mark.parametrize(
    ("options", "save", "steps"),
    [
        ({}, {}, [2, 4, 6]),
        ({"save_strategy": "no"}, {}, [6]),
        ({"save_strategy": "no"}, {"every_steps": 4}, [4, 6]),
        ({"save_strategy": "epoch"}, {}, [3, 6]),
        ({"save_strategy": "epoch"}, {"every_steps": 3}, [3, 6]),
        ({"save_strategy": "epoch"}, {"every_steps": 2}, [2, 3, 4, 6]),
        ({"save_steps": 4}, {"every_steps": 3}, [3, 4, 6]),
    ],
    ids=str,
)
def test_a_checkpoint_is_written_when_trainer_or_the_policy_says_so(
    tmp_path: Path, options: dict[str, Any], save: dict[str, Any], steps: list[int]
) -> None:
    url = f"file://{tmp_path}/run"
    written = Written()
    run(tmp_path / "output", url, written, save=SavePolicy(**({"every_seconds": None} | save)), **options)
    assert committed(url) == steps
    assert written.steps == steps, "none was written again, into the files of a running save"
    assert [path.name for path in (tmp_path / "output").glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_request_is_served_after_the_running_step(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/run"
    request = At(2, lambda: open_run(url).request_save(request="before-maintenance"))
    wait = At(3, lambda: time.sleep(4))  # rank 0 reads the log every three seconds
    run(tmp_path / "output", url, request, wait, save_strategy="no")
    assert committed(url)[0] in (3, 4)
    assert open_run(url).snapshots()[0].commit.trigger == "Request"


def test_files_beside_the_checkpoints_are_left_alone_and_not_stored(tmp_path: Path) -> None:
    url, output = f"file://{tmp_path}/run", tmp_path / "output"
    run(output, url)
    for name in ("runs/events", "config.json", "checkpoint", "c", "chess/x", "checkpoint-9/torn"):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
    made = trainer(output)
    with TrainerSnapshots(made, url) as snapshots:
        assert snapshots.checkpoint == str(output / "checkpoint-6")
        assert made.args.save_total_limit == 1
    for name in ("runs/events", "config.json", "checkpoint", "c", "chess/x"):
        assert (output / name).read_text() == "mine"
    assert not (output / "checkpoint-9").exists(), "resume_from_checkpoint=True would choose it"


def test_an_own_limit_and_early_stopping_are_respected(tmp_path: Path) -> None:
    url, output = f"file://{tmp_path}/run", tmp_path / "output"
    stop = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)
    best: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    made = run(output, url, stop, save_total_limit=2, **best)
    assert made.state.global_step == 4
    assert committed(url) == [2, 4]
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"save_only_model": True}, "leaves out the optimizer"),
        ({"enable_jit_checkpoint": True}, "answers SIGTERM on each rank alone"),
    ],
)
def test_arguments_that_contradict_exact_resumption_are_refused(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    made = trainer(tmp_path / "output", **options)
    with pytest.raises(ConfigurationError, match=problem):
        TrainerSnapshots(made, f"file://{tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_a_url_as_output_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = trainer(Path("output"))
    made.args.output_dir = "s3://bucket/run"
    with pytest.raises(ConfigurationError, match="taken for a local path"):
        TrainerSnapshots(made, f"file://{tmp_path}/run")
    assert not list(tmp_path.glob("s3*"))
