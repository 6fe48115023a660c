"""``kubectl ckpt report`` and ``ui`` open the bucket as the Checkpoint says, with its Secret."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from checkpoint_cli.app import run
from checkpoint_cli.cluster import pages
from checkpoint_cli.cluster.kubectl import Kubectl
from checkpoint_cli.cluster.stores import settings_of
from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.ui.runs import LiveRuns
from checkpoint_cli.verbs import Door
from checkpoint_sidecar.store.access import AMBIENT, StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.longlogs import write_log

SECRET = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-key", "note": "not a key of ours"}


def checkpoint(**storage: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "training", "name": "llama"}, "spec": {"storage": storage}}


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the API server answers, by path; everything else is forbidden."""
    found: dict[str, Any] = {}

    def get(_: Kubectl, operation: str, subject: str, path: str, **__: str) -> Any:
        if path not in found:
            raise CommandRefusedError(operation, subject, "forbidden", status=ExitStatus.REFUSED)
        return found[path]

    monkeypatch.setattr(Kubectl, "get", get)
    return found


def secret(values: Mapping[str, str]) -> dict[str, Any]:
    return {"data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}}


KUBECTL = Kubectl("training")


def test_the_store_is_opened_as_the_spec_says(objects: dict[str, Any]) -> None:
    objects["/api/v1/namespaces/training/secrets/bucket"] = secret(SECRET)
    body = checkpoint(
        url="s3://training/llama/",
        endpoint="http://store:9000",
        region="eu",
        addressingStyle="Path",
        credentialsSecret={"name": "bucket"},
    )
    settings = settings_of(KUBECTL, body)
    assert (settings.url, settings.endpoint, settings.region) == ("s3://training/llama", "http://store:9000", "eu")
    assert settings.addressing_style == "Path"
    assert dict(settings.credentials.read()) == {name: SECRET[name] for name in SECRET if name != "note"}


def test_without_a_secret_it_is_the_own_identity_and_never_for_an_endpoint_of_the_checkpoint() -> None:
    assert settings_of(KUBECTL, checkpoint(url="s3://training/llama")).credentials == AMBIENT
    with pytest.raises(CommandRefusedError, match="names an endpoint and no Secret") as refused:
        settings_of(KUBECTL, checkpoint(url="s3://training/llama", endpoint="http://attacker:80"))
    assert refused.value.status is ExitStatus.REFUSED


def test_a_secret_that_may_not_be_read_is_a_refusal(objects: dict[str, Any]) -> None:
    assert objects == {}
    with pytest.raises(CommandRefusedError, match="training/bucket: forbidden"):
        settings_of(KUBECTL, checkpoint(url="s3://training/llama", credentialsSecret={"name": "bucket"}))


def test_a_value_that_is_not_text_is_named_without_showing_it(objects: dict[str, Any]) -> None:
    objects["/api/v1/namespaces/training/secrets/bucket"] = {"data": {"AWS_ACCESS_KEY_ID": "gICA"}}
    with pytest.raises(CommandRefusedError, match="a value is not text"):
        settings_of(KUBECTL, checkpoint(url="s3://training/llama", credentialsSecret={"name": "bucket"}))


def test_a_report_is_named_after_the_checkpoint(
    objects: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (tmp_path / "run").as_uri()
    write_log(LocalStore(StoreSettings(url)), 30)
    monkeypatch.setattr(Kubectl, "checkpoint", lambda *_: checkpoint(url=url))
    monkeypatch.chdir(tmp_path)
    assert run(Door.CLUSTER, ["report", "llama", "--namespace", "training"]) == 0
    assert (tmp_path / "llama-report.html").read_text().startswith("<!doctype html>")
    assert run(Door.CLUSTER, ["report", "llama@best", "--namespace", "training"]) == 2


def test_runs_that_can_be_opened_are_shown_and_the_others_say_why(objects: dict[str, Any], tmp_path: Path) -> None:
    url = (tmp_path / "run").as_uri()
    write_log(LocalStore(StoreSettings(url)), 30)
    bodies = [
        checkpoint(url=url),
        checkpoint(url="s3://training/closed", credentialsSecret={"name": "bucket"}),
    ]
    assert objects == {}
    found, problems = LiveRuns(lambda: (pages.place_of(KUBECTL, each) for each in bodies)).search()
    assert found == (url,)
    assert list(problems) == ["s3://training/closed"]
    assert "forbidden" in problems["s3://training/closed"]


def test_a_cluster_that_does_not_answer_is_named_above_the_list() -> None:
    def places() -> Any:
        raise CommandRefusedError("list Checkpoints", "in training", "refused", status=ExitStatus.UNREACHABLE)

    found, problems = LiveRuns(places).search()
    assert found == ()
    assert "list Checkpoints" in problems["search"]
