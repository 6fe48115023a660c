"""`checkpoint` on runs in a folder: what it prints, its statuses, and that it only reads."""

from __future__ import annotations

import json
import re
import tarfile
import threading
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from checkpoint_cli.verbs import Door
from checkpoint_sidecar.core.policy import KeepBest, RetentionPolicy, SavePolicy
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.builders import History
from support.commands import Program
from support.stored import put_entry, stored

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "cli-schema.json").read_text())
READING = [("ls",), ("ls", "--all"), ("show",), ("status",), ("log",), ("prune", "--dry-run")]


def llama() -> History:
    """A run with a rollback, a policy, a save that failed and a damaged snapshot."""
    policy = RetentionPolicy(keep_last=1, keep_best=(KeepBest("loss"),))
    history = History().configured(retention=policy, save=SavePolicy(every_steps=100, every_seconds=None)).started()
    for step in (100, 200, 300):
        history.committed(step, metrics={"loss": str(1000 - step)})
    history.verified(100, 200, 300, level="Checksums").rollback(200).started().restored()
    history.committed(250, metrics={"loss": "900"}).verified(250)
    return history.retired(100).found_damaged(300).save_failed(350, message="no space\nleft")


@pytest.fixture
def history() -> History:
    return llama()


@pytest.fixture
def url(history: History, tmp_path: Path) -> str:
    address = (tmp_path / "llama").as_uri()
    stored(history, LocalStore(StoreSettings(address)))
    return address


@pytest.fixture
def checkpoint(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(Door.BUCKET, capsys)


def files_of(url: str) -> dict[str, bytes]:
    root = Path(url.removeprefix("file://"))
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_ls_lists_live_snapshots_newest_first(checkpoint: Program, url: str, history: History) -> None:
    assert checkpoint("ls", url, "-o", "name").output.split() == list(history.ids(250, 300, 200))
    assert checkpoint("ls", url, "--all", "-o", "name").output.split() == list(history.ids(250, 300, 200, 100))
    header, first, *_ = checkpoint("ls", url).output.splitlines()
    assert header.split()[:2] == ["STEP", "SNAPSHOT"]
    assert first.split()[:2] == ["250", history.id(250)]


@pytest.mark.parametrize("arguments", READING)
def test_json_and_yaml_are_what_the_schema_says(checkpoint: Program, url: str, arguments: tuple[str, ...]) -> None:
    verb, *options = arguments
    record = checkpoint(verb, url, *options, "-o", "json").json
    jsonschema.validate(record, SCHEMA)
    assert yaml.safe_load(checkpoint(verb, url, *options, "-o", "yaml").output)["kind"] == record["kind"]


@pytest.mark.parametrize("arguments", [*READING, ("doctor", "--read-only")])
def test_looking_changes_nothing(checkpoint: Program, url: str, arguments: tuple[str, ...]) -> None:
    before = files_of(url)
    verb, *options = arguments
    checkpoint(verb, url, *options)
    assert files_of(url) == before


def test_doctor_leaves_nothing_behind(checkpoint: Program, url: str) -> None:
    before = files_of(url)
    report = json.loads(checkpoint("doctor", url, "-o", "json").output)
    jsonschema.validate(report, SCHEMA)
    assert files_of(url) == before
    found = {each["check"]: each["result"] for each in report["items"]}
    assert found["clock"] == found["run log"] == "ok"
    # The failed save and the damaged snapshot.
    assert found["health"] == "problem"


def test_doctor_finds_an_empty_prefix_fit_for_a_run(checkpoint: Program, tmp_path: Path) -> None:
    ran = checkpoint("doctor", (tmp_path / "new").as_uri())
    assert ran.status == 0, ran.output
    assert "a new run can begin here" in ran.output


@pytest.mark.parametrize(
    ("selector", "step"), [("", 250), ("@latest", 250), ("@best", 200), ("@100", 100), ("@300-1-", 300)]
)
def test_a_selector_finds_its_snapshot(checkpoint: Program, url: str, selector: str, step: int) -> None:
    assert checkpoint("show", f"{url}{selector}", "-o", "json").json["step"] == step


def test_marks_and_reasons_say_what_a_snapshot_is(checkpoint: Program, url: str) -> None:
    items = {each["step"]: each for each in checkpoint("ls", url, "--all", "-o", "json").json["items"]}
    assert items[250]["marks"] == ["latest"]
    assert items[200]["marks"] == ["best"]
    assert items[300]["marks"] == ["superseded"]
    assert items[200]["kept"] is True
    assert any(reason.startswith("KeepBest") for reason in items[200]["reasons"])
    assert items[100]["state"] == "Retired"
    assert items[100]["purgeAfter"] is not None


def test_status_is_one_screen(checkpoint: Program, url: str, history: History) -> None:
    text = checkpoint("status", url, "--until-step", "1250").output
    assert len(text.splitlines()) < 24
    assert "Health:        Degraded" in text
    assert "saving step 350 failed" in text
    assert "no space left" in text
    # Attempt 1 had committed step 300 before the rollback to step 200.
    assert "Lost work:     100 steps" in text
    assert "Next save:     at step 300, when training runs" in text
    assert f"purges {history.id(100)} after" in text


def test_the_log_tells_the_story_in_order(checkpoint: Program, url: str, history: History) -> None:
    lines = checkpoint("log", url).output.splitlines()
    assert len(lines) == len(history.entries)
    assert "claimed the prefix" in lines[0]
    told = "\n".join(lines)
    assert "Attempt 1 saved step 300" in told
    assert "A rollback to step 200" in told
    assert "could not save step 350" in told
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert re.match(r" +1  \d{4}-\d{2}-\d{2}T", lines[0])


def test_every_kind_of_entry_has_a_sentence() -> None:
    from checkpoint_cli.sentences import sentence
    from checkpoint_sidecar.core.log import KINDS, Unknown

    told = {type(entry.body).__name__ for entry in llama().entries}
    assert all(sentence(entry.body, {}) for entry in llama().entries)
    assert "Later" in sentence(Unknown("Later"), {})
    source = Path(__file__).parents[2] / "cli" / "checkpoint_cli" / "sentences.py"
    assert not [kind for kind in KINDS if f"log.{kind}()" not in source.read_text()]
    assert told <= KINDS.keys()


def test_wait_finds_what_is_there_and_gives_up_in_time(checkpoint: Program, url: str, history: History) -> None:
    ran = checkpoint("wait", url, "--step", "220", "-o", "name")
    assert ran.output.strip() in history.ids(250, 300)
    for arguments in (("--step", "1000"), ()):
        ran = checkpoint("wait", url, *arguments, "--timeout", "0s")
        assert ran.status == 1
        assert "did not come within 0s" in ran.problem


def test_follow_prints_what_is_committed_from_then_on(checkpoint: Program, url: str, history: History) -> None:
    def commit_another() -> None:
        time.sleep(1)
        put_entry(history.committed(400).entries[-1], LocalStore(StoreSettings(url)))

    thread = threading.Thread(target=commit_another)
    thread.start()
    ran = checkpoint("follow", url, "--count", "1")
    thread.join()
    assert ran.output.split() == [history.id(400)]


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("{url}@12345", 3, "12345"),
        ("{url}@zzz", 3, "zzz"),
        ("{url}@", 2, "nothing follows the @"),
        ("{url}-absent", 3, "no run log"),
        ("no-url", 2, "<scheme>"),
        ("s3://user:hidden@bucket/run", 2, "user names, passwords"),
        ("{url}@3", 3, "no snapshot has this step"),
    ],
)
def test_bad_input_is_one_line_with_its_status(
    checkpoint: Program, url: str, address: str, status: int, says: str
) -> None:
    for verb in ("ls", "show", "tree", "verify"):
        ran = checkpoint(verb, address.format(url=url))
        assert (ran.status, ran.output) == (status, ""), ran
        assert says in ran.problem
        assert "hidden" not in ran.problem


@pytest.mark.parametrize("verb", ["status", "log", "wait", "follow", "save", "prune", "doctor", "bundle"])
def test_a_selector_is_refused_where_it_means_nothing(checkpoint: Program, url: str, verb: str) -> None:
    ran = checkpoint(verb, f"{url}@best")
    assert (ran.status, ran.output) == (2, "")
    assert "leave out @best" in ran.problem


def test_an_ambiguous_id_names_the_candidates(checkpoint: Program, tmp_path: Path) -> None:
    history = History().started().committed(100).started().committed(1001)
    history.started(candidate="").committed(100, parent="")
    address = (tmp_path / "run").as_uri()
    stored(history, LocalStore(StoreSettings(address)))
    ran = checkpoint("show", f"{address}@100-")
    assert ran.status == 2
    assert ran.problem.count("100-") >= 2


@pytest.mark.parametrize(
    ("damage", "status", "says"),
    [(b"not json", 6, "not a log entry"), (b'{"format": "9.0"}', 6, "Upgrade"), (b"", 6, "")],
)
def test_a_damaged_or_newer_log_has_status_6(
    checkpoint: Program, url: str, damage: bytes, status: int, says: str
) -> None:
    from checkpoint_sidecar.core import layout

    LocalStore(StoreSettings(url)).put(layout.log_key(2), damage)
    ran = checkpoint("ls", url)
    assert (ran.status, ran.output) == (status, "")
    assert says in ran.problem


def test_a_store_that_does_not_answer_has_status_5(checkpoint: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from checkpoint_cli.bucket import door
    from checkpoint_sidecar.core.errors import StoreError

    def broken(*_: object) -> object:
        raise StoreError("list the log", "s3://bucket/run", "connection refused", "Check the endpoint.")

    monkeypatch.setattr(door, "store_at", broken)
    ran = checkpoint("ls", "s3://bucket/run")
    assert ran.status == 5
    assert "connection refused" in ran.problem


def test_control_characters_of_a_log_do_not_reach_the_terminal(checkpoint: Program, tmp_path: Path) -> None:
    history = (
        History().started().committed(100, metrics={"\x1b[2J": "\x1b]0;x\x07"}).save_failed(110, message="a\x1b[31m")
    )
    address = (tmp_path / "run").as_uri()
    stored(history, LocalStore(StoreSettings(address)))
    for arguments in (("ls", "-o", "wide"), ("show",), ("status",), ("log",)):
        verb, *options = arguments
        ran = checkpoint(verb, address, *options)
        assert ran.status == 0
        assert not set("\x1b\x07") & set(ran.output)


def test_a_bundle_holds_the_run_and_no_secret(
    checkpoint: Program, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENG")
    monkeypatch.setenv("MY_API_TOKEN", "tok-0123456789abcdef")
    history = History().started().save_failed(1, message="403 for wJalrXUtnFEMIK7MDENG and tok-0123456789abcdef")
    address = (tmp_path / "leaky").as_uri()
    stored(history, LocalStore(StoreSettings(address)))
    target = tmp_path / "out.tar.gz"
    assert checkpoint("bundle", address, "--file", str(target)).output == f"Wrote {target}\n"
    texts: dict[str, str] = {}
    with tarfile.open(target) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            texts[member.name] = content.read().decode()
    assert texts.keys() == {
        f"bundle/{name}"
        for name in ("status.json", "snapshots.json", "checks.json", "policy.json", "environment.txt", "log.jsonl")
    }
    everything = "\n".join(texts.values())
    assert "403 for" in everything
    assert "wJalrXUtnFEMIK7MDENG" not in everything
    assert "tok-0123456789abcdef" not in everything
    assert "AWS_SECRET_ACCESS_KEY\n" in texts["bundle/environment.txt"]


def test_a_bundle_that_cannot_be_written_leaves_nothing(checkpoint: Program, url: str, tmp_path: Path) -> None:
    ran = checkpoint("bundle", url, "--file", str(tmp_path / "absent" / "x.tar.gz"))
    assert ran.status == 2
    assert "No such file" in ran.problem


def test_a_narrow_terminal_gets_narrow_lines(checkpoint: Program, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from checkpoint_cli import output

    monkeypatch.setattr(output, "width", lambda: 60)
    for arguments in (("ls",), ("ls", "-o", "wide"), ("show",), ("status",), ("log",)):
        verb, *options = arguments
        lines = checkpoint(verb, url, *options).output.splitlines()
        assert max(map(len, lines)) <= 60, max(lines, key=len)
