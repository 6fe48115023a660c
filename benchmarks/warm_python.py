"""A Python that has imported torch and the trainers already: a program starts in it in milliseconds instead of seconds.

A judge starts hundreds of short training jobs, whose time would be spent importing. ``warm_python`` starts a server
that has imported everything, and yields a program that is called like ``python``: ``<program> script.py ...`` or
``<program> -m module ...``. It runs in a fork of the server, with the caller's arguments, environment, folder and
output, ends as an interpreter ends, and dies with its caller. The crash judge's injector is armed as in a fresh one.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

CALLER = """#!{python} -IS
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
said = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(said).to_bytes(8, "big")], [1, 2])
server.sendall(said)
code = server.recv(16)
os._exit(int(code) if code else 1)
"""


@contextmanager
def warm_python(folder: Path, modules: list[str]) -> Iterator[str]:
    """Yield the path of the program.

    Args:
        folder: Where the program and its socket lie; the path must be short.
        modules: What to import beforehand; those that are not installed are left out.
    """
    address, program = folder / "warm.socket", folder / "warm-python"
    program.write_text(CALLER.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, str(address), *modules], stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"ready\n"
        yield str(program)
    finally:
        server.kill()
        server.wait()


def _serve(address: str, modules: list[str]) -> Any:
    """Serve callers until killed. Returns in the fork that is to run a program: its arguments and environment."""
    for module in modules:
        with contextlib.suppress(ImportError):
            import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            caller, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return _started(caller)
            caller.close()


def _started(caller: socket.socket) -> Any:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, outputs, _, _ = socket.recv_fds(caller, 8, 2)
    said = b""
    while len(said) < int.from_bytes(size, "big"):
        said += caller.recv(65536)
    program = os.fork()
    if program == 0:
        caller.close()
        for number, output in zip((1, 2), outputs, strict=True):
            os.dup2(output, number)
            os.close(output)
        return json.loads(said)
    for output in outputs:
        os.close(output)
    # A pidfd is readable once the program has ended; the caller's socket, once the caller has.
    with selectors.DefaultSelector() as either:
        either.register(caller, selectors.EVENT_READ)
        either.register(os.pidfd_open(program), selectors.EVENT_READ)
        if any(key.fileobj is caller for key, _ in either.select()):
            os.kill(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        caller.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def _run(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[1:1] = [each for each in environment.get("PYTHONPATH", "").split(":") if each]
    if "ckpt_chaos/_boot" in environment.get("PYTHONPATH", ""):
        import_module("ckpt_chaos.targets.common").arm_from_env(int(environment.get("RANK", "0")), lazy=True)
        os.environ["CKPT_CHAOS_ARMED"] = "1"
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _run(*_serve(sys.argv[1], sys.argv[2:]))
