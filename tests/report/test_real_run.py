"""The report of a run that ``Checkpointer`` made on a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_cli.app import run
from checkpoint_cli.verbs import Door
from checkpoint_sidecar import Checkpointer
from localcluster.objectstore import ObjectStore
from report.reports import Page
from training.checkpointer_runs import Training

pytestmark = [pytest.mark.store, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


def test_a_run_on_a_real_store_has_a_report(
    object_store: ObjectStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        (tmp_path / name).write_text(object_store.environment[name])
    url = f"s3://{bucket}/llama"
    variables = {
        "CHECKPOINT_RUN": "c1/team/llama",
        "CHECKPOINT_URL": url,
        "CHECKPOINT_ENDPOINT": object_store.endpoint,
        "CHECKPOINT_CREDENTIALS_FOLDER": str(tmp_path),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for total in (3, 5):
        training = Training()
        with Checkpointer.from_env(training.state) as checkpointer:
            for step in checkpointer.steps(total):
                checkpointer.step(step, metrics={"loss": training.train(step)})
    target = tmp_path / "report.html"
    assert run(Door.BUCKET, ["report", url, "--file", str(target)]) == 0
    page = Page(target.read_text())
    for words in ("llama", url, "Attempt 2 restored step 3", "its last save was made on the way out", "loss by step"):
        assert (
            words in page.text
            or words in page.values("aria-label")
            or any(words in label for label in page.values("aria-label"))
        )
