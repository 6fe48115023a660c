"""``Checkpointer`` in an injected pod, against a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.errors import BucketNotFoundError, StoreError
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


def test_a_bucket_that_does_not_exist_is_named(injected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_URL", "s3://no-such-bucket-here/llama")
    with pytest.raises(BucketNotFoundError, match="no-such-bucket-here"):
        train(1)


def test_wrong_keys_never_show_in_the_error(injected: str, tmp_path: Path) -> None:
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("a-wrong-secret")
    with pytest.raises(StoreError) as caught:
        train(1)
    assert "a-wrong-secret" not in str(caught.value)
