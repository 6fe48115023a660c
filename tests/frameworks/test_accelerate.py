"""accelerate with our snapshots: real ranks, a real S3 server, real signals; `examples/accelerate_train.py` trains."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState

from checkpoint_sidecar import open_run
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.integrations.accelerate import accelerator_snapshots
from doubles.faulty_server import Fault, faulty_server
from frameworks.forked_gangs import gang, trained
from frameworks.gangs import EXAMPLES, committed, contents
from localcluster.objectstore import ObjectStore

SCRIPT = EXAMPLES / "accelerate_train.py"
ON_CPU = Path(__file__).parent / "fsdp_on_cpu.py"
STEPS = 6

pytestmark = [pytest.mark.store, pytest.mark.distributed]


@pytest.fixture
def url(object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a run, with the environment of an injected pod."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CHECKPOINT_RUN", "c1/team/llama")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    return f"s3://{bucket}/llama"


def train(url: str, folder: Path, *options: object, ranks: int = 2, steps: int = STEPS) -> list[str]:
    """The losses and the digest of the weights that a start prints."""
    printed = trained(ON_CPU, *arguments(*options, steps=steps), folder=folder, ranks=ranks, CHECKPOINT_URL=url)
    return results(printed)


def arguments(*options: object, steps: int = STEPS) -> list[object]:
    return [SCRIPT, "--steps", steps, "--save-every", 2, *options]


def results(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("step ", "weights "))]


@pytest.mark.parametrize("options", [(), ("--fsdp",)], ids=["DDP", "FSDP2"])
def test_a_run_that_is_killed_in_a_save_and_then_terminated_ends_like_an_undisturbed_one(
    url: str, tmp_path: Path, object_store: ObjectStore, options: tuple[str, ...]
) -> None:
    expected = train(f"{url}-undisturbed", tmp_path, *options)
    assert len(expected) == STEPS + 1
    with faulty_server(object_store.endpoint) as server:
        server.faults = [Fault("PUT", "/step-4/", "keep silent", times=1_000)]
        with gang(
            ON_CPU, *arguments(*options), folder=tmp_path, AWS_ENDPOINT_URL=server.endpoint, CHECKPOINT_URL=url
        ) as started:
            started.until(lambda: server.faults[0].times < 1_000)
            started.signal(signal.SIGKILL)
            assert started.exits() == {-signal.SIGKILL}
    assert committed(url) == [2], "the save was in the middle"
    with gang(ON_CPU, *arguments(*options, "--pause", 1), folder=tmp_path, CHECKPOINT_URL=url) as started:
        started.until_printed("step 3:")
        started.processes[1].send_signal(signal.SIGTERM)  # as when only its node is drained
        assert started.exits() == {143}, started.output
        assert "which is saved" in started.output
    last = committed(url)[-1]
    assert last in (3, 4)
    assert open_run(url).snapshots()[-1].commit.trigger == "Termination"
    assert train(url, tmp_path, *options) == expected[last:]
    assert committed(url)[-1] == STEPS


def test_another_number_of_ranks_restores_the_same_weights_and_trains_on(url: str, tmp_path: Path) -> None:
    two = train(url, tmp_path, "--fsdp", steps=2)
    assert train(url, tmp_path, "--fsdp", steps=2, ranks=1) == two[-1:], "nothing is left to train"
    one = train(url, tmp_path, "--fsdp", steps=4, ranks=1)
    assert [line.partition(":")[0] for line in one] == ["step 3", "step 4", one[-1]]
    assert train(url, tmp_path, steps=4, ranks=2) == one[-1:], "without FSDP"
    assert committed(url) == [2, 4]


def test_shards_of_save_state_go_to_the_store_from_a_mapped_folder(url: str, tmp_path: Path) -> None:
    local = tmp_path / "checkpoints"
    program = Path(__file__).parent / "accelerate_folders.py"
    printed = trained(ON_CPU, program, local, f"{url}/shards", folder=tmp_path)
    assert "the same weights came back" in printed
    written = {path.name for path in local.rglob("*") if path.is_file()}
    assert not {name for name in written if name.endswith((".distcp", ".metadata"))}
    assert "random_states_1.pkl" in written, "what DCP does not write stays local"
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        assert len(open_run(f"{url}/shards/step-1/{name}").snapshots()) == 1


class Count:
    """An object that the user registers."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def prepared() -> tuple[Accelerator, Count]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, tail = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW([*model.parameters(), *tail.parameters()])
    accelerator.prepare(model, tail, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))
    count = Count()
    accelerator.register_for_checkpointing(count)
    return accelerator, count


@pytest.mark.filterwarnings("ignore")
def test_all_that_was_prepared_or_registered_comes_back(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/run"
    accelerator, count = prepared()
    notes = {"seen": 0}
    with accelerator_snapshots(accelerator, url, state={"notes": notes}) as snapshots:
        for step in snapshots.steps(1):
            accelerator.step, count.value, notes["seen"] = 3, 7, 9
            accelerator._schedulers[0].scheduler.last_epoch = 5
            snapshots.step(step)
    names = {name.partition(".")[0] for name in contents(url, 1)}
    assert names >= {"model", "model_1", "optimizer", "scheduler", "custom", "accelerator", "random", "notes"}
    weights = [each.detach().clone() for model in accelerator._models for each in model.parameters()]
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, count = prepared()
    notes = {"seen": 0}
    with accelerator_snapshots(accelerator, url, state={"notes": notes}) as snapshots:
        snapshots.restore()
    assert (accelerator.step, count.value, notes["seen"]) == (3, 7, 9)
    assert accelerator._schedulers[0].scheduler.last_epoch == 5
    assert all(map(torch.equal, weights, (each for model in accelerator._models for each in model.parameters())))


def test_an_accelerator_that_cannot_be_saved_from_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    with pytest.raises(ConfigurationError, match="it has no model yet"):
        accelerator_snapshots(accelerator, f"file://{tmp_path}")
    for engine in ("DEEPSPEED", "MEGATRON_LM", "XLA"):
        monkeypatch.setattr(Accelerator, "distributed_type", DistributedType[engine])
        with pytest.raises(ConfigurationError, match="take snapshots of the folder with FileSnapshots"):
            accelerator_snapshots(accelerator, f"file://{tmp_path}")
    assert list(tmp_path.iterdir()) == []
