"""Training processes that come to all kinds of ends.

Each is a real one: forked from a host that has imported torch, and from there on a script of its own, which ends as the
interpreter ends.

Run as a script this is the host. It reads cases from standard input, one line of JSON each, and answers with lines.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

if TYPE_CHECKING:
    from checkpoint_sidecar.core.policy import OnFailure

TESTS = Path(__file__).parents[1]
BUSY = 10
"""How many cases run at a time: most of them wait for most of their time."""

End = Literal["return", "raise", "exit 0", "exit 3", "train on", "stop by itself"]


@dataclass(frozen=True)
class Case:
    """A training process that makes five steps, or trains until a signal comes.

    Attributes:
        close: Whether it uses the ``with`` block, or forgets all about closing.
        end: How it ends after the last step.
        every_steps: When a save is due.
        fail, hang: Requests that fail, and that are never answered: verb and part of the key.
        signals: Sent to the given rank once it has got as far as the marker says: ``(signal, rank, marker)``; or once
            another rank has, which the marker then ends with, as ``hanging-0``.
        init: Whether the process is PID 1 of its container.
        environment: Per rank.
        on: What happens in the middle: ``fork`` has a child leave by ``sys.exit(0)``, ``panic`` has the last
            rank's client raise what is no ``Exception``, ``die`` has a background thread end before it did anything,
            ``generator`` has it train in a generator that is left after step 5, ``thread`` in another thread than the
            main one, ``loop`` in an event loop that handles SIGTERM itself.
    """

    ranks: int = 1
    close: bool = True
    end: End = "return"
    every_steps: int | None = 5
    grace: float = 5.0
    stall: float = 2.0
    fail: tuple[str, str] | None = None
    hang: tuple[str, str] | None = None
    hang_rank: int = 0
    signals: tuple[tuple[str, int, str], ...] = ()
    init: bool = False
    environment: dict[str, dict[str, str]] = field(default_factory=dict)
    on: str = ""
    on_failure: OnFailure = "Continue"


@dataclass(frozen=True)
class Ending:
    """How one rank ended."""

    code: int
    log: list[str]
    seconds: float


class Host:
    """Starts processes of cases; one call at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
        )
        self._lock = threading.Lock()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def run(self, case: Case, folder: Path, *, timeout: float) -> list[Ending]:
        """Run a case to its end; processes that do not come to one are killed, and have code -9."""
        began = time.monotonic()
        pids = [self._ask({"case": asdict(case), "folder": str(folder), "rank": rank}) for rank in range(case.ranks)]
        signals = list(case.signals)
        codes: dict[int, int] = {}
        ended: dict[int, float] = {}
        while len(codes) < len(pids):
            for name, rank, marker in list(signals):
                if (folder / (marker if marker[-1].isdigit() else f"{marker}-{rank}")).exists():
                    pid = int((folder / f"pid-{rank}").read_text())
                    os.kill(pid, getattr(signal, f"SIG{name}"))
                    signals.remove((name, rank, marker))
                    began = time.monotonic()
            for rank, pid in enumerate(pids):
                if rank not in codes and (code := self._ask({"poll": pid})) is not None:
                    codes[rank], ended[rank] = code, time.monotonic() - began
            if time.monotonic() - began > timeout:
                for rank, pid in enumerate(pids):
                    if rank not in codes:
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        logs = [(folder / f"log-{rank}").read_text().splitlines() for rank in range(case.ranks)]
        return [Ending(codes[rank], logs[rank], ended[rank]) for rank in range(case.ranks)]

    def _ask(self, question: dict[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


# In the host and its children


def serve() -> tuple[Case, Path, int] | None:
    """Fork a child for each case. Returns in a child with its case, and in the host when nothing more is asked."""
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            return Case(**question["case"]), Path(question["folder"]), question["rank"]
        print(pid, flush=True)
    return None


def be_init(folder: Path, rank: int) -> None:
    """Continue as PID 1 of a namespace. The former process only passes the exit code on."""
    new_pid_namespace = 0x20000000
    if ctypes.CDLL(None).unshare(new_pid_namespace) != 0:
        os._exit(77)
    pid = os.fork()
    if pid:
        (folder / f"pid-{rank}").write_text(str(pid))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    assert os.getpid() == 1


def hang() -> None:
    """Never return, nor let a signal be handled in this thread: as a native client that waits for its store."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


class Panic(BaseException):
    """As pyo3 raises when Rust panics: no ``Exception``, and not to be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a panic")


class Store:
    """A store of which some requests fail or are never answered."""

    def __init__(self, store: Any, case: Case, mark: Any, rank: int) -> None:
        self._store, self._case, self._mark, self._rank = store, case, mark, rank
        self._panicked = False

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if not callable(attribute) or name == "upload":
            return attribute

        def request(*arguments: Any, **options: Any) -> Any:
            self._befall(name, str(arguments[0]) if arguments else "")
            return attribute(*arguments, **options)

        return request

    @contextmanager
    def upload(self, key: str, size: int) -> Iterator[Any]:
        self._befall("upload", key)
        with self._store.upload(key, size) as upload:
            yield upload

    def _befall(self, verb: str, key: str) -> None:
        from checkpoint_sidecar.core.errors import StoreError

        case = self._case
        if verb == "upload" and key.endswith(".distcp"):
            self._mark("uploading")
            if case.on == "panic" and self._rank == case.ranks - 1 and not self._panicked:
                self._panicked = True
                raise Panic("rust panicked")
        if case.fail and case.fail[0] == verb and case.fail[1] in key:
            raise StoreError("upload", key, "the disk is full")
        if case.hang and case.hang[0] == verb and case.hang[1] in key and self._rank == case.hang_rank:
            self._mark("hanging")
            hang()


def train(case: Case, folder: Path, rank: int) -> None:
    import torch
    import torch.distributed as dist

    from checkpoint_sidecar import Checkpointer
    from checkpoint_sidecar.core.policy import SavePolicy
    from checkpoint_sidecar.store.opening import open_store
    from checkpoint_sidecar.training import checkpointer as module
    from checkpoint_sidecar.training import saving

    def mark(what: str) -> None:
        (folder / f"{what}-{rank}").touch()

    torch.set_num_threads(1)
    if case.ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=case.ranks)
    mock.patch.object(module, "open_store", lambda settings: Store(open_store(settings), case, mark, rank)).start()
    if case.on == "die":
        mock.patch.object(saving._Save, "_run", return_value=None).start()
    state: dict[str, Any] = {"model": torch.nn.Linear(8, 8), "seen": [0]}
    if case.hang and case.hang[0] == "state_dict":
        state["slow"] = HangingState(mark)
    policy = SavePolicy(every_steps=case.every_steps, every_seconds=None, on_failure=case.on_failure)
    url = f"file://{folder}/run"
    checkpointer = Checkpointer(state, url, save=policy, grace_seconds=case.grace, stall_seconds=case.stall)
    mark("constructed")
    if case.on == "generator":
        trainer = steps_of(checkpointer)
        for _ in range(5):
            next(trainer)
        trainer.close()
        return
    if case.on == "thread":
        thread = threading.Thread(target=lambda: [*itertools.islice(steps_of(checkpointer, total=5), 6)])
        thread.start()
        thread.join()
        mark("stoppable")
        time.sleep(60)
    if case.on == "loop":
        asyncio.run(train_in_a_loop(checkpointer, mark))
    with checkpointer if case.close else nullcontext():
        checkpointer.restore()
        mark("training")
        for step in range(1, 6):
            state["seen"][0] = step
            checkpointer.step(step)
            if case.on == "fork" and step == 1 and os.fork() == 0:
                sys.exit(0)
        if case.on == "fork":
            os.wait()
        if case.end == "stop by itself":
            signal.signal(signal.SIGUSR1, lambda *_: checkpointer.save_and_stop())
            mark("stoppable")
        step = 5
        while case.end in ("train on", "stop by itself"):
            time.sleep(0.05)
            step += 1
            checkpointer.step(step)
        if case.end == "raise":
            raise ZeroDivisionError
        if case.end.startswith("exit"):
            sys.exit(int(case.end[-1]))


def steps_of(checkpointer: Any, total: int = 100) -> Generator[int]:
    with checkpointer:
        checkpointer.restore()
        for step in range(1, total + 1):
            checkpointer.step(step)
            yield step


async def train_in_a_loop(checkpointer: Any, mark: Any) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    with checkpointer:
        checkpointer.restore()
        mark("training")
        for step in range(1, 1000):
            await asyncio.sleep(0.5 if step == 1 else 0.05)
            checkpointer.step(step)


class HangingState:
    """An object that cannot be copied in time: its device hangs."""

    def __init__(self, mark: Any) -> None:
        self._mark = mark

    def state_dict(self) -> dict[str, Any]:
        self._mark("hanging")
        hang()
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def main() -> None:

    import checkpoint_sidecar.training.checkpointer  # noqa: F401

    found = serve()
    if found is None:
        return
    case, folder, rank = found
    os.environ.update(case.environment.get(str(rank), {}))
    log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if case.init:
        be_init(folder, rank)
    else:
        (folder / f"pid-{rank}").write_text(str(os.getpid()))
    train(case, folder, rank)


if __name__ == "__main__":
    main()
