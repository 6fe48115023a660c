"""Ray Train on a Ray cluster of this machine, with two workers, one of which is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoint_sidecar import ConfigurationError, open_run
from doubles.faulty_server import Fault, faulty_server
from frameworks.gangs import EXAMPLES, committed
from localcluster.objectstore import ObjectStore

SCRIPT = EXAMPLES / "ray_train.py"
STEPS = 6

pytestmark = [pytest.mark.store, pytest.mark.distributed, pytest.mark.timeout(1800)]


@pytest.fixture
def url(object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/small"


def started(url: str, folder: Path, *options: object, **environment: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    arguments = ["--url", url, "--steps", STEPS, "--every", 2, "--storage", folder, "--log", folder / "log", *options]
    return subprocess.Popen(
        [sys.executable, "-u", str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"RAY_TRAIN_V2_ENABLED": "1", "OMP_NUM_THREADS": "1"} | environment,
        stdout=(folder / "output").open("a"),
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(folder: Path) -> list[str]:
    return re.findall(r"^(step \d+ loss \S+)", (folder / "log").read_text(), re.MULTILINE)


def worker(folder: Path) -> int:
    """The process of rank 0 that trained the last step."""
    return int((folder / "log").read_text().split()[-1])


def finished(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.wait(900) == 0, (folder / "output").read_text()[-5_000:]


def test_a_worker_killed_in_the_middle_of_a_save_is_replaced_and_loses_nothing(
    url: str, tmp_path: Path, object_store: ObjectStore
) -> None:
    folder = tmp_path / "first"
    with faulty_server(object_store.endpoint) as server:
        server.faults = [Fault("PUT", "/step-4/", "keep silent", times=1)]
        process = started(url, folder, AWS_ENDPOINT_URL=server.endpoint)
        while server.faults[0].times:
            assert process.poll() is None, (folder / "output").read_text()[-5_000:]
            time.sleep(0.05)
        assert committed(url) == [2]
        os.kill(worker(folder), signal.SIGKILL)
        finished(process, folder)
    assert committed(url) == [2, 4, 6]
    assert [snapshot.commit.attempt for snapshot in open_run(url).snapshots()] == [1, 2, 2]
    assert sorted(open_run(url).snapshots()[0].commit.metrics) == ["loss"]
    trained = losses(folder)
    assert [line.split()[1] for line in trained] == ["1", "2", "3", "4", "3", "4", "5", "6"]
    assert trained[2:4] == trained[4:6], "steps 3 and 4 were trained again, exactly"

    known = sorted(folder.rglob("snapshot.json"))
    references = [json.loads(file.read_text())["snapshot"] for file in known]
    assert references[-1] == f"{url}@6"
    # Ray was asked to keep one. It deletes in the background, and on a busy machine ends before it has deleted all.
    assert len(references) < len(committed(url))
    assert open_run(url).verify(2).passed, "and deletes references only"

    alone = tmp_path / "second"
    finished(started(url, alone, "--steps", STEPS + 2, "--workers", 1), alone)
    assert [line.split()[1] for line in losses(alone)] == ["7", "8"]
    assert committed(url) == [2, 4, 6, 8]


def test_an_injected_worker_leaves_ray_a_reference_to_the_pods_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_train = pytest.importorskip("ray.train")
    from checkpoint_sidecar.integrations.ray import RaySnapshots

    url, known = (tmp_path / "run").as_uri(), []

    class Context:
        def get_storage(self) -> Context:
            return self

        def persist_current_checkpoint(self, checkpoint: Any, name: str) -> None:
            known.append((name, (Path(checkpoint.path) / "snapshot.json").read_text()))

    monkeypatch.setattr(ray_train, "get_context", Context)
    monkeypatch.setenv("CHECKPOINT_RUN", "c1/team/llama")
    monkeypatch.setenv("CHECKPOINT_URL", url)
    with RaySnapshots.from_env(tmp_path / "folder") as snapshots:
        snapshots.restore()
        (tmp_path / "folder" / "weights").write_text("1")
        upload = snapshots.upload(1)
        with pytest.raises(ConfigurationError, match="Report RaySnapshots"):
            upload(ray_train.Checkpoint.from_directory(str(tmp_path)), "elsewhere")
        upload(snapshots.checkpoint, "first")
    assert known == [("first", json.dumps({"snapshot": f"{url}@1"}))]
    assert committed(url) == [1]
