from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster.processes import Daemons, Identity, ProcessError, record_process


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    daemons = Daemons(tmp_path)
    yield daemons
    daemons.stop(*(daemon.name for daemon in daemons.all()), grace=0)


def test_a_daemon_is_found_again_by_its_record(daemons: Daemons, tmp_path: Path) -> None:
    started = daemons.start("sleeper", ["sleep", "60"])
    assert Daemons(tmp_path).daemon("sleeper").identity == started.identity is not None


def test_a_stopped_daemon_leaves_no_process_and_no_record(daemons: Daemons) -> None:
    identity = daemons.start("sleeper", ["sleep", "60"]).identity
    assert identity is not None
    daemons.stop("sleeper")
    assert not identity.alive()
    assert daemons.all() == []


def test_a_daemon_that_ignores_the_polite_signal_is_ended_by_force(daemons: Daemons) -> None:
    stubborn = daemons.start("stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    stubborn.wait_ready(lambda: "ready" in stubborn.log_tail())
    identity = stubborn.identity
    assert identity is not None
    daemons.stop("stubborn", grace=0.2)
    assert not identity.alive()


def test_stopping_what_does_not_run_is_fine(daemons: Daemons) -> None:
    daemons.stop("never-started")


def test_a_process_id_that_was_used_again_is_another_process() -> None:
    current = Identity.current(os.getpid())
    assert current is not None
    assert not Identity(current.pid, current.started - 1).alive()


def test_a_process_that_ended_but_was_not_reaped_counts_as_gone() -> None:
    process = subprocess.Popen(["true"])
    deadline = time.monotonic() + 5
    while Identity.current(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()


def test_a_record_from_before_the_last_boot_is_void(tmp_path: Path) -> None:
    record = tmp_path / "record"
    record_process(record, os.getpid())
    recorded = Identity.recorded(record)
    assert recorded is not None
    assert recorded.alive()
    record.write_text("another-boot\n" + record.read_text().partition("\n")[2])
    assert Identity.recorded(record) is None


def test_a_record_that_was_cut_short_is_void(tmp_path: Path) -> None:
    record = tmp_path / "record"
    record_process(record, os.getpid())
    record.write_text(record.read_text().rstrip("\n"))
    assert Identity.recorded(record) is None


def test_a_program_name_may_hold_spaces_and_parentheses(daemons: Daemons, tmp_path: Path) -> None:
    odd = tmp_path / ") Z (odd"
    odd.symlink_to("/bin/sleep")
    daemon = daemons.start("odd", [odd, "60"])
    assert daemon.identity is not None
    assert daemon.identity.alive()


def test_a_daemon_that_dies_while_starting_is_reported_with_the_end_of_its_log(daemons: Daemons) -> None:
    daemon = daemons.start("broken", [sys.executable, "-c", "raise SystemExit('port is taken')"])
    with pytest.raises(ProcessError, match=r"(?s)broken exited while starting.*port is taken"):
        daemon.wait_ready(lambda: False)


def test_a_daemon_that_never_gets_ready_is_reported_after_the_timeout(daemons: Daemons) -> None:
    daemon = daemons.start("slow", ["sh", "-c", "echo waiting for nothing; sleep 60"])
    with pytest.raises(ProcessError, match=r"(?s)not ready within 1 s.*waiting for nothing"):
        daemon.wait_ready(lambda: False, timeout=1.0)


def test_a_daemon_outlives_its_starter(tmp_path: Path) -> None:
    program = f"from pathlib import Path; from localcluster.processes import Daemons; Daemons(Path({str(tmp_path)!r}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", f"{program}.start('orphan', ['sleep', '60'])"], env=environment, check=True)
    identity = Daemons(tmp_path).daemon("orphan").identity
    assert identity is not None
    identity.send(signal.SIGKILL)
