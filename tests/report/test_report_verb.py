"""``checkpoint report``: the page under its name, one line for each failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_cli.app import run
from checkpoint_cli.verbs import Door
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.longlogs import write_log


@pytest.fixture
def url(tmp_path: Path) -> str:
    address = (tmp_path / "llama").as_uri()
    write_log(LocalStore(StoreSettings(address)), 50)
    return address


def test_a_report_is_written_under_the_name_of_the_run(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(Door.BUCKET, ["report", url]) == 0
    assert "Wrote llama-report.html" in capsys.readouterr().out
    page = (tmp_path / "llama-report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n")


def test_a_report_goes_to_standard_output(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Door.BUCKET, ["report", url, "--file", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["{url}@latest"], 2, "leave out @latest"),
        (["{url}-absent"], 3, "there is no run log below it"),
        (["nowhere"], 2, "check the storage URL"),
        (["{url}", "--file", "{folder}/absent/report.html"], 2, "No such file or directory"),
    ],
)
def test_a_report_that_cannot_be_written_is_one_line(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [each.format(url=url, folder=tmp_path) for each in arguments]
    assert run(Door.BUCKET, ["report", *filled]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert says in shown.err
    assert shown.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_a_page_that_cannot_be_written_leaves_nothing_behind(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-report.html").mkdir()
    assert run(Door.BUCKET, ["report", url]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "llama-report.html"}
