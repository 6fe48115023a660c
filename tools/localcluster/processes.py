"""Start daemons, know them again later, stop them.

A daemon outlives the program that started it, so everything about it is on disk: a log and a record. The record is
written by the child itself before it becomes the daemon (there is no moment in which a daemon runs unrecorded) and
holds the boot id, the process id and the start time of the process: a recycled process id is never mistaken for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster.requirements import SBIN

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
POLL_SECONDS = 0.05
LOG_LINES_SHOWN = 15

# $1 record, $2 cgroup.procs file to join or "", $3 working directory, the rest is the daemon's command line.
_LAUNCHER = f"""
cat {BOOT_ID} /proc/$$/stat >"$1" || exit 1
[ -z "$2" ] || echo $$ >"$2" || exit 1
cd "$3" && shift 3 && exec "$@"
"""


class ProcessError(Exception):
    """A daemon died or did not become ready; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Identity:
    """One process, as opposed to whatever has the same process id later."""

    pid: int
    started: int
    """Clock ticks since boot."""

    @classmethod
    def current(cls, pid: int) -> Identity | None:
        """The process that has this id now; None if there is none or it is only waiting to be reaped."""
        try:
            return cls._parse(Path(f"/proc/{pid}/stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            return None

    @classmethod
    def recorded(cls, record: Path) -> Identity | None:
        """The process that wrote `record`; None if it was written before the last boot or never finished."""
        try:
            boot_id, _, stat = record.read_text().partition("\n")
        except FileNotFoundError:
            return None
        if boot_id != BOOT_ID.read_text().strip() or not stat.endswith("\n"):
            return None
        return cls._parse(stat)

    @classmethod
    def _parse(cls, stat: str) -> Identity | None:
        # The second field is the program's name in parentheses and may itself hold spaces and parentheses.
        before, _, after = stat.rpartition(")")
        fields = after.split()
        state, started = fields[0], int(fields[19])
        return None if state in "ZX" else cls(int(before.split()[0]), started)

    def alive(self) -> bool:
        return Identity.current(self.pid) == self

    def send(self, signal_number: int) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)


@dataclass(frozen=True)
class Daemon:
    """A name with a record and a log; running or not."""

    name: str
    record: Path
    log: Path

    @property
    def identity(self) -> Identity | None:
        """The running process, or None."""
        identity = Identity.recorded(self.record)
        return identity if identity is not None and identity.alive() else None

    def log_tail(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
        return "(no log)"

    def wait_ready(self, probe: Callable[[], bool], timeout: float = 60.0) -> None:
        """Return when `probe` says yes; raise `ProcessError` when the daemon dies or time runs out."""
        deadline = time.monotonic() + timeout
        while not probe():
            if self.identity is None:
                raise ProcessError(f"{self.name} exited while starting; end of {self.log}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                message = f"{self.name} was not ready within {timeout:.0f} s; end of {self.log}:\n{self.log_tail()}"
                raise ProcessError(message)
            time.sleep(POLL_SECONDS)


class Daemons:
    """The daemons of one cluster: records in `<directory>/pids`, logs in `<directory>/logs`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._records = directory / "pids"
        self._logs = directory / "logs"

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        cgroup: Path | None = None,
    ) -> Daemon:
        """Start `command` in a session of its own, with a small known environment and the cluster's directory as cwd.

        `cgroup` is a cgroup folder that the daemon, and so whatever it starts, belongs to.
        """
        self._records.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        daemon = self.daemon(name)
        daemon.record.unlink(missing_ok=True)
        procs = str(cgroup / "cgroup.procs") if cgroup else ""
        arguments = [str(daemon.record), procs, str(self.directory), *map(str, command)]
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _LAUNCHER, "sh", *arguments],
            {"PATH": f"{os.environ['PATH']}:{SBIN}", "HOME": str(self.directory), **(environment or {})},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, daemon.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        while daemon.identity is None and Identity.current(pid) is not None:
            time.sleep(0.001)
        return daemon

    def daemon(self, name: str) -> Daemon:
        return Daemon(name, self._records / name, self._logs / f"{name}.log")

    def all(self) -> list[Daemon]:
        """Every daemon that was ever started here, oldest first."""
        if not self._records.is_dir():
            return []
        records = sorted(self._records.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [self.daemon(record.name) for record in records]

    def stop(self, *names: str, grace: float = 5.0) -> None:
        """SIGTERM to those of `names` that run, SIGKILL to what is left after `grace` seconds; forget them."""
        daemons = [self.daemon(name) for name in names]
        stop_all([identity for daemon in daemons if (identity := daemon.identity)], grace)
        for daemon in daemons:
            daemon.record.unlink(missing_ok=True)


def record_process(record: Path, pid: int) -> None:
    """Write the record of a process that is no daemon of ours, for `Identity.recorded` to read."""
    record.write_text(BOOT_ID.read_text() + Path(f"/proc/{pid}/stat").read_text())


def stop_all(identities: Sequence[Identity], grace: float) -> None:
    """End these processes: politely, and by force after `grace` seconds."""
    for identity in identities:
        identity.send(signal.SIGTERM)
    if not _gone(identities, grace):
        for identity in identities:
            identity.send(signal.SIGKILL)
        if not _gone(identities, 5.0):
            stuck = [identity.pid for identity in identities if identity.alive()]
            raise ProcessError(f"processes {stuck} survive SIGKILL (uninterruptible input or output?)")


def _gone(identities: Sequence[Identity], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while any(identity.alive() for identity in identities):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    for identity in identities:
        # Reap those that are children of this very process (a pytest run, not the command line tool).
        with contextlib.suppress(ChildProcessError):
            os.waitpid(identity.pid, os.WNOHANG)
    return True
