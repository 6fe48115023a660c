"""The verbs that change a run in a bucket: they append under the operator's rules, once, and refuse in its place."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from checkpoint_cli.verbs import Door
from checkpoint_sidecar import open_run
from checkpoint_sidecar.core.policy import Policy, RetentionPolicy
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.builders import History
from support.commands import Program
from support.stored import stored
from support.trainers import Trainer

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "cli-schema.json").read_text())
CHANGES = [
    ("hold", "@100"),
    ("release", "@100"),
    ("rollback", "@100", "--yes"),
    ("save", ""),
    ("prune", "", "--yes"),
    ("rm", "@100", "--yes"),
]


def trained(path: Path) -> str:
    """A run of three steps that no operator manages, with a policy that keeps one snapshot and no grace period."""
    store = LocalStore(StoreSettings(path.as_uri()))
    trainer = Trainer(store).start()
    for step in (100, 200, 300):
        trainer.commit(step)
    run = open_run(path.as_uri())
    run.configure(Policy(retention=RetentionPolicy(keep_last=1, grace_seconds=0)))
    return path.as_uri()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return trained(tmp_path / "llama")


@pytest.fixture
def managed(tmp_path: Path) -> str:
    """The same history, configured by an operator."""
    address = (tmp_path / "managed").as_uri()
    history = History().configured(retention=RetentionPolicy(keep_last=1)).started().committed(100, 200, 300)
    stored(history.verified(300), LocalStore(StoreSettings(address)))
    return address


@pytest.fixture
def checkpoint(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(Door.BUCKET, capsys)


@pytest.mark.parametrize("change", CHANGES)
def test_a_dry_run_writes_nothing(checkpoint: Program, url: str, change: tuple[str, ...]) -> None:
    head = open_run(url).refresh().head
    verb, selector, *_ = change
    ran = checkpoint(verb, f"{url}{selector}", "--dry-run", "-o", "json")
    jsonschema.validate(ran.json, SCHEMA)
    assert ran.json.get("done", False) is False
    assert open_run(url).refresh().head == head


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_an_operator_manages_is_refused(checkpoint: Program, managed: str, change: tuple[str, ...]) -> None:
    head = open_run(managed).refresh().head
    verb, selector, *options = change
    ran = checkpoint(verb, f"{managed}{selector}", *options)
    assert ran.status == 4
    assert "operator" in ran.problem
    assert open_run(managed).refresh().head == head


def test_without_operator_overrides(checkpoint: Program, managed: str) -> None:
    assert checkpoint("hold", f"{managed}@100", "--without-operator", "-o", "json").json["done"] is True
    assert open_run(managed).find(100).disposition == "Hold"


def test_a_hold_is_written_once_and_released(checkpoint: Program, url: str) -> None:
    assert checkpoint("hold", f"{url}@100", "-o", "json").json["done"] is True
    assert checkpoint("hold", f"{url}@100", "-o", "json").json["done"] is False
    assert open_run(url).find(100).disposition == "Hold"
    assert checkpoint("release", f"{url}@100").status == 0
    assert open_run(url).find(100).disposition == "Auto"


def test_a_rollback_is_pending_until_the_next_start(checkpoint: Program, url: str) -> None:
    request = checkpoint("rollback", f"{url}@100", "--yes", "-o", "name").output.strip()
    pending = open_run(url).state.pending
    assert pending is not None
    assert (pending.id, pending.snapshot) == (request, open_run(url).find(100).id)
    assert f"Next start:    restores {pending.snapshot}" in checkpoint("status", url).output


def test_what_is_hard_to_undo_needs_yes_where_there_is_no_terminal(checkpoint: Program, url: str) -> None:
    head = open_run(url).refresh().head
    for verb, selector in (("rollback", "@100"), ("retire", "@100"), ("prune", ""), ("rm", "@100")):
        ran = checkpoint(verb, f"{url}{selector}")
        assert ran.status == 2
        assert "Add --yes" in ran.problem
    assert open_run(url).refresh().head == head


def test_a_snapshot_must_be_named(checkpoint: Program, url: str) -> None:
    for verb in ("rollback", "hold", "release", "retire", "rm"):
        ran = checkpoint(verb, url)
        assert ran.status == 2
        assert "no snapshot was named" in ran.problem


def test_retire_and_prune_delete_what_was_given_up(checkpoint: Program, url: str) -> None:
    root = Path(url.removeprefix("file://"))
    assert checkpoint("verify", f"{url}@300", "--checksums", "--record").status == 0
    assert open_run(url).find(300).verified == "Checksums"
    assert checkpoint("retire", f"{url}@100", "--yes", "-o", "json").json["done"] is True
    said = checkpoint("prune", url, "--dry-run", "-o", "name")
    assert said.output.count("\n") == 2
    assert "A prune now retires 2 snapshots, and deletes 2 snapshots, " in said.errors
    for _ in range(3):
        assert checkpoint("prune", url, "--yes").status == 0
    states = {each["step"]: each["state"] for each in checkpoint("ls", url, "--all", "-o", "json").json["items"]}
    assert states == {100: "Purged", 200: "Purged", 300: "Live"}
    assert not list(root.glob("step-100/*/*"))
    assert "nothing to retire" in checkpoint("prune", url, "--dry-run").errors


def test_rm_deletes_the_named_snapshots_and_no_other(checkpoint: Program, url: str) -> None:
    root = Path(url.removeprefix("file://"))
    shown = checkpoint("rm", f"{url}@100", "@200", "--yes", "-o", "json").json
    jsonschema.validate(shown, SCHEMA)
    assert {each["step"]: each["state"] for each in shown["items"]} == {100: "Purged", 200: "Purged"}
    assert not list(root.glob("step-[12]00/*/*"))
    assert checkpoint("verify", f"{url}@300", "--checksums").status == 0
    assert "A user removed step 100" in checkpoint("log", url).output


def test_rm_of_several_deletes_none_if_one_is_refused(checkpoint: Program, url: str) -> None:
    head = open_run(url).refresh().head
    ran = checkpoint("rm", f"{url}@100", "300", "--yes")
    assert ran.status == 4
    assert "newest that a start can trust" in ran.problem
    assert open_run(url).refresh().head == head


def test_copy_makes_a_run_elsewhere_and_then_has_nothing_to_do(checkpoint: Program, url: str, tmp_path: Path) -> None:
    to = (tmp_path / "copy").as_uri()
    planned = checkpoint("copy", f"{url}@200", to, "--dry-run", "-o", "json").json
    jsonschema.validate(planned, SCHEMA)
    assert [each["step"] for each in planned["items"]] == [200]
    assert not (tmp_path / "copy").exists()
    assert [each["step"] for each in checkpoint("copy", f"{url}@200", to, "-o", "json").json["items"]] == [200]
    assert [each["step"] for each in checkpoint("copy", url, to, "-o", "json").json["items"]] == [300, 100]
    assert "has all of that already" in checkpoint("copy", url, to).errors
    assert "A copy of the run" in checkpoint("log", to).output
    assert checkpoint("verify", to, "--all", "--checksums").status == 0


def test_copy_to_another_run_or_an_unknown_place_is_refused(checkpoint: Program, url: str, managed: str) -> None:
    assert checkpoint("copy", url, managed).status == 4
    assert checkpoint("copy", url, url).status == 4
    assert checkpoint("copy", url, "elsewhere").status == 2


def test_the_newest_verified_snapshot_is_not_given_up(checkpoint: Program, url: str) -> None:
    checkpoint("verify", url, "--record")
    ran = checkpoint("retire", f"{url}@latest", "--yes")
    assert ran.status == 4
    assert "newest verified" in ran.problem


def test_save_waits_for_the_commit_that_answers(checkpoint: Program, tmp_path: Path) -> None:
    address = (tmp_path / "run").as_uri()
    store = LocalStore(StoreSettings(address))
    trainer = Trainer(store).start()
    trainer.commit(100)

    def serve() -> Iterator[None]:
        run = open_run(address)
        while not (attempt := run.refresh().attempt) or not attempt.save_request:
            time.sleep(0.1)
            yield
        trainer.commit(107, save_request=attempt.save_request)

    thread = threading.Thread(target=lambda: list(serve()))
    thread.start()
    ran = checkpoint("save", address, "--wait", "--timeout", "20s")
    thread.join()
    assert ran.status == 0, ran.errors
    assert "has saved step 107" in ran.output


def test_a_save_that_does_not_come_has_status_1(checkpoint: Program, url: str) -> None:
    ran = checkpoint("save", url, "--wait", "--timeout", "0s")
    assert ran.status == 1
    assert "did not come within 0s" in ran.problem


def test_a_fork_is_claimed_and_says_what_to_hold(checkpoint: Program, url: str, tmp_path: Path) -> None:
    new = (tmp_path / "fork").as_uri()
    assert checkpoint("fork", f"{url}@100", new, "--dry-run", "-o", "json").json["done"] is False
    assert not (tmp_path / "fork").exists()
    ran = checkpoint("fork", f"{url}@100", new, "--part", "model", "-o", "json")
    jsonschema.validate(ran.json, SCHEMA)
    chosen = open_run(new).state.warm_start
    assert chosen is not None
    assert (ran.json["snapshot"], chosen.part) == (chosen.snapshot, "model") == (open_run(url).find(100).id, "model")
    assert f"checkpoint hold {url}@{chosen.snapshot}" in ran.json["text"]
    assert "begins at model of step 100 of another run" in checkpoint("log", new).output
    assert "Next start:    begins at model of step 100 of another run" in checkpoint("status", new).output
    refused = checkpoint("fork", url, url)
    assert (refused.status, "of its own" in refused.problem) == (2, True)


def test_a_fork_leaves_a_run_with_snapshots_alone(checkpoint: Program, url: str, tmp_path: Path) -> None:
    other = trained(tmp_path / "other")
    head = open_run(other).refresh().head
    ran = checkpoint("fork", url, other, "--run", "llama")
    assert ran.status == 4
    assert open_run(other).refresh().head == head
