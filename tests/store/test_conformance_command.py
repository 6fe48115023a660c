"""``python -m checkpoint_sidecar.conformance``, as a user runs it against a store of theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_sidecar.conformance import __main__ as conformance
from checkpoint_sidecar.conformance.promises import CHECKS
from checkpoint_sidecar.store.opening import Driver
from doubles.faulty_server import Fault, FaultyServer, faulty_server
from support.s3servers import REGION, Server


@pytest.fixture
def credentials(moto: Server, tmp_path: Path) -> Path:
    for key, value in moto.credentials.items():
        (tmp_path / key).write_text(value)
    return tmp_path


@pytest.fixture
def server(moto: Server) -> Iterator[FaultyServer]:
    with faulty_server(moto.endpoint) as server:
        yield server


@pytest.fixture(autouse=True)
def only_the_cheap_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of many requests, and not the concurrent creates, of which moto lets two win."""
    cheap = ("is read back", "second create", "listing shows", "deleting is")
    chosen = [check for check in CHECKS if any(words in check.promise for words in cheap)]
    monkeypatch.setattr(conformance, "CHECKS", tuple(chosen))


def s3_arguments(server: FaultyServer, url: str, credentials: Path, driver: Driver) -> list[str]:
    where = [url, "--endpoint", server.endpoint, "--region", REGION, "--addressing-style", "Path"]
    return [*where, "--credentials-folder", str(credentials), "--driver", driver]


def test_a_good_store_gets_a_line_for_each_promise_and_status_0(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "checkpoint_sidecar.conformance", str(tmp_path)]

    run = subprocess.run(asked, capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    for check in CHECKS:
        assert f"kept       {check.promise}" in run.stdout
    assert run.stdout.endswith("promises are kept. This store is fit for checkpoints.\n")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.store
@pytest.mark.parametrize("driver", ["fsspec", "native"])
def test_a_store_without_conditional_writes_gets_status_1_and_the_promise_it_breaks(
    driver: Driver, moto: Server, server: FaultyServer, credentials: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.append(Fault("PUT", "", "drop the condition", times=10_000))
    url = moto.settings().url

    assert conformance.main(s3_arguments(server, url, credentials, driver)) == 1

    shown = capsys.readouterr().out
    assert "BROKEN     a created object is never replaced by a second create" in shown
    assert "Use a store that honors If-None-Match on PUT." in shown
    assert "Why it matters: A commit is the creation" in shown
    assert "Do not use this store for checkpoints." in shown
    assert moto.secret_key not in shown


@pytest.mark.store
def test_the_findings_can_be_had_as_json(
    moto: Server, server: FaultyServer, credentials: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = moto.settings().url

    assert conformance.main([*s3_arguments(server, url, credentials, "native"), "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert (report["url"], report["adapter"]) == (url, "HttpStore")
    assert {promise["verdict"] for promise in report["promises"]} == {"Kept"}
    assert set(report["promises"][0]) == {"promise", "why", "verdict", "detail", "seconds"}


@pytest.mark.store
def test_a_missing_right_gets_status_2_and_is_named(
    moto: Server, server: FaultyServer, credentials: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.append(Fault("GET", "list-type", (403, "AccessDenied"), times=10_000))

    assert conformance.main(s3_arguments(server, moto.settings().url, credentials, "native")) == 2

    shown = capsys.readouterr().out
    assert "kept       what is written is read back, byte for byte" in shown
    assert "not asked  a listing shows an object right after it was written" in shown
    assert "the store answered AccessDenied" in shown


@pytest.mark.store
def test_a_missing_bucket_gets_status_2_after_one_question(
    moto: Server, server: FaultyServer, credentials: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conformance.main(s3_arguments(server, "s3://no-such-bucket/run", credentials, "fsspec")) == 2

    assert "Create the bucket" in capsys.readouterr().out
    assert len(server.seen) <= 2


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["gopher://host/run"], "scheme gopher is unknown"),
        (["gs://bucket/run", "--driver", "fsspec"], "does not serve gs"),
        (["s3://bucket/run", "--credentials-folder", "/nowhere"], "/nowhere"),
    ],
)
def test_arguments_that_cannot_work_get_status_2(
    arguments: list[str], cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conformance.main(arguments) == 2

    assert cause in capsys.readouterr().err


def test_the_documentation_lists_every_promise_and_what_happens_without_it() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "storage.md").read_text()

    rows = "\n".join(f"| {check.promise} | {check.why} |" for check in CHECKS)
    assert f"| promise | otherwise |\n| --- | --- |\n{rows}\n\n" in documented
    assert f"{len(CHECKS)} of {len(CHECKS)} promises are kept." in documented
