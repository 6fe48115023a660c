"""``checkpoint ui`` as a process: it prints its address, serves, and ends with Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from checkpoint_cli.app import run
from checkpoint_cli.bucket import ui
from checkpoint_cli.verbs import Door
from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.longlogs import write_log


def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    for name in ("llama", "mistral"):
        write_log(LocalStore(StoreSettings((tmp_path / "team" / name).as_uri())), 30)
    # A run of tests in the background of a shell ignores SIGINT, and so would the program.
    code = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from checkpoint_cli import app\napp.bucket()"
    command = [sys.executable, "-c", code, "ui", tmp_path.as_uri()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = line.split()[2]
            with urllib.request.urlopen(address, timeout=30) as answer:
                page = answer.read().decode()
            assert "2 runs" in page
            assert (tmp_path / "team" / "mistral").as_uri() in page
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_a_search_of_too_many_objects_gives_up() -> None:
    count = ui._limit("s3://training")
    count(ui.MAX_OBJECTS)
    with pytest.raises(StoreError, match="more than 200,000 objects"):
        count(1)


def test_a_selector_is_refused() -> None:
    assert run(Door.BUCKET, ["ui", "s3://training/llama@best"]) == 2
