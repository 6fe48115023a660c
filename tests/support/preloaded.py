"""The operator in processes that need not import it: a process that has done so is forked for each.

To import the operator takes longer than most of the tests that start one. Nothing else differs from
``python -m checkpoint_operator``, which the chart's containers run and the tests of the cluster therefore start.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@functools.cache
def preloaded() -> Preloaded:
    """The one of this process, which ends with it."""
    one = Preloaded()
    atexit.register(one.close)
    return one


class Preloaded:
    """The process that is forked. It ends when this object is closed; those that were forked from it live on."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", __file__]  # without this folder, whose modules have names of packages
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Forked:
        """Start an operator with exactly this environment; what it writes goes into a file."""
        log.write_bytes(b"")  # a test may read it before the process has come to it
        asked = {"arguments": [*arguments], "environment": dict(environment), "log": str(log)}
        return Forked(self, self._ask(asked))

    def status(self, pid: int) -> int | None:
        """Exit status of a process, negative for a signal, or None while it runs. It can be asked until it is known."""
        status: int | None = self._ask({"pid": pid})
        return status

    def close(self) -> None:
        self._server.communicate()

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(question), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


@dataclass
class Forked:
    """A running operator, with what tests ask of a `subprocess.Popen`."""

    source: Preloaded
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.source.status(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises `subprocess.TimeoutExpired` after so many seconds."""
        if self.returncode is None:
            end = os.pidfd_open(self.pid)  # ready once it has ended; the process is not reaped before it was polled
            ready, _, _ = select.select([end], [], [], timeout)
            os.close(end)
            if not ready:
                raise subprocess.TimeoutExpired("checkpoint_operator", timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(questions: Iterable[str]) -> None:
    """Answer what `Preloaded` asks; return in a process that was forked, which then is the operator to be."""
    gc.freeze()  # a collection in a forked process would copy every page
    for question in map(json.loads, questions):
        if "pid" in question:
            pid, status = os.waitpid(question["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                _become(**question)
                return
        print(json.dumps(answer), flush=True)
    os._exit(0)


def _become(arguments: list[str], environment: Mapping[str, str], log: str) -> None:
    from kubernetes.aio.config import kube_config

    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND)
    for opened, standard in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(opened, standard)
    os.closerange(3, max(nothing, output) + 1)
    os.environ.clear()
    os.environ.update(environment)
    # The package reads this variable when it is imported.
    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = environment["KUBECONFIG"]
    sys.argv[1:] = arguments


if __name__ == "__main__":
    from checkpoint_operator.__main__ import main

    with suppress(KeyboardInterrupt):
        _serve(sys.stdin)
        main()
