"""``Checkpointer`` in an injected pod, against a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.errors import BucketNotFoundError, RestoreInterrupted, StoreError
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer as module
from doubles.faulty_server import Effect, Fault, FaultyServer, faulty_server
from localcluster.objectstore import ObjectStore
from training.checkpointer_runs import Training

pytestmark = [pytest.mark.store, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


@pytest.fixture
def injected(object_store: ObjectStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment and the mounted Secret of an injected pod; returns the run's URL."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        (tmp_path / name).write_text(object_store.environment[name])
    variables = {
        "CHECKPOINT_RUN": "c1/team/llama",
        "CHECKPOINT_URL": f"s3://{bucket}/llama",
        "CHECKPOINT_ENDPOINT": object_store.endpoint,
        "CHECKPOINT_CREDENTIALS_FOLDER": str(tmp_path),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables["CHECKPOINT_URL"]


def train(total: int) -> Training:
    training = Training()
    with Checkpointer.from_env(training.state) as checkpointer:
        for step in checkpointer.steps(total):
            checkpointer.step(step, metrics={"loss": training.train(step)})
    return training


def test_an_interrupted_run_ends_like_an_undisturbed_one(injected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train(3)
    resumed = train(5)
    monkeypatch.setenv("CHECKPOINT_URL", f"{injected}-undisturbed")
    assert resumed.fingerprint() == train(5).fingerprint()


def test_an_injected_pod_begins_where_its_environment_says(injected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train(3)
    monkeypatch.setenv("CHECKPOINT_URL", f"{injected}-fork")
    monkeypatch.setenv("CHECKPOINT_START_FROM", f"{injected}@3")
    forked = train(5)
    monkeypatch.setenv("CHECKPOINT_URL", f"{injected}-undisturbed")
    monkeypatch.delenv("CHECKPOINT_START_FROM")
    assert forked.fingerprint() == train(5).fingerprint()


@pytest.fixture
def flaky(object_store: ObjectStore, injected: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A proxy on the way to a store that holds steps 1 and 2."""
    train(1)
    train(2)
    with faulty_server(object_store.endpoint) as server:
        monkeypatch.setenv("CHECKPOINT_ENDPOINT", server.endpoint)
        yield server


def restored() -> tuple[int, int]:
    """Return the step that a start continues from, and how many snapshots it passed over."""
    with Checkpointer.from_env(Training().state) as checkpointer:
        found = checkpointer.restore()
    assert found is not None
    return found.step, len(found.skipped)


@pytest.mark.parametrize(
    ("name", "effect"),
    [
        ("__0_0.distcp", "flip a bit of the data"),
        (".metadata", "flip a bit of the data"),
        ("manifest.json", "flip a bit of the data"),
        ("__0_0.distcp", "shorten the reply"),
        ("__0_0.distcp", (404, "NoSuchKey")),
    ],
    ids=str,
)
def test_one_bad_transfer_costs_a_restore_no_snapshot(
    flaky: FaultyServer, name: str, effect: Effect | tuple[int, str]
) -> None:
    flaky.faults = [Fault("GET", f"/{name}", effect)]
    assert restored() == (2, 0)
    assert flaky.faults[0].times == 0, "the fault did befall a request"


@pytest.mark.parametrize("effect", ["flip a bit of the data", "shorten the reply"])
def test_what_is_wrong_in_each_transfer_is_passed_over_although_its_size_is_right(
    flaky: FaultyServer, effect: Effect
) -> None:
    flaky.faults = [Fault("GET", "step-2/", effect, times=1000)]
    assert restored() == (1, 1)


@pytest.mark.parametrize("name", ["manifest.json", ".metadata", "__0_0.distcp"])
def test_a_store_that_goes_silent_in_a_restore_interrupts_the_start_and_costs_no_snapshot(
    flaky: FaultyServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hasty = Timeouts(deadline_seconds=0.3, answer_seconds=0.3)
    monkeypatch.setattr(module, "open_store", lambda settings: open_store(settings, timeouts=hasty))
    flaky.faults = [Fault("GET", f"/{name}", "keep silent", times=1000)]
    with pytest.raises(RestoreInterrupted, match=f"{name}: the store did not answer in time.*Start again"):
        restored()
    flaky.forget()
    assert restored() == (2, 0)


def test_a_bucket_that_does_not_exist_is_named(injected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_URL", "s3://no-such-bucket-here/llama")
    with pytest.raises(BucketNotFoundError, match="no-such-bucket-here"):
        train(1)


def test_wrong_keys_never_show_in_the_error(injected: str, tmp_path: Path) -> None:
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("a-wrong-secret")
    with pytest.raises(StoreError) as caught:
        train(1)
    assert "a-wrong-secret" not in str(caught.value)
