"""Build the control plane, the kubelet and Helm from source, once per machine.

Standard library only: the bootstrap runs `python -m localcluster.build` while `uv sync` is still at work.

Results live in a cache folder keyed by everything that goes into them. Each binary is linked under a temporary name
and moved into place: whatever lies in the folder is whole, and usable as soon as it is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from localcluster import versions

GO_MINIMUM = (1, 26)
HEARTBEAT_SECONDS = 10.0
"""How often a compilation that prints nothing of its own reports that it is alive."""

FLAGS = ("-mod=readonly", "-trimpath", "-gcflags=all=-dwarf=false")
"""Without debugging information, which the linker would drop anyway, the compiler needs a fifth less processor time."""
COLLECTION = {"GOGC": "off", "GOMEMLIMIT": "2GiB"}
"""Lets each process of the compiler use memory before it collects garbage: another fifth less processor time."""

Report = Callable[[str], None]


class BuildError(Exception):
    """A binary could not be built; the message says which, why and what to do."""


def cache_root() -> Path:
    """Where everything goes that costs minutes to make and is the same for every checkout."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "checkpoint-operator"


def cache_folder() -> Path:
    return cache_root() / "localcluster" / versions.key()


def built(name: str) -> Path | None:
    """The finished binary `name`, or None while there is none."""
    path = cache_folder() / name
    return path if path.exists() else None


def toolchain_problem() -> str | None:
    """Why Go cannot build the binaries on this machine, or None."""
    wanted = ".".join(map(str, GO_MINIMUM))
    go = shutil.which("go")
    if go is None:
        return f"no Go toolchain on PATH: install Go {wanted} or newer from your distribution or go.dev"
    # Asked inside the module, so that a toolchain that Go would switch to by itself counts.
    answer = subprocess.run(
        [go, "env", "GOVERSION"], cwd=versions.MODULES / "pause", capture_output=True, text=True, check=False
    )
    found = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    if found is None:
        return f"`go env GOVERSION` failed: {answer.stderr.strip()}"
    if tuple(map(int, found.groups())) < GO_MINIMUM:
        return f"Go {wanted} or newer is needed, found {answer.stdout.strip()} at {go}"
    return None


def build(report: Report = print) -> Path:
    """Build whatever is not in the cache yet; return the folder that holds everything."""
    folder = cache_folder()
    if all(built(name) for name in versions.CLUSTER):
        return folder
    if problem := toolchain_problem():
        raise BuildError(problem)
    folder.mkdir(parents=True, exist_ok=True)
    with only_builder(folder, report):
        for binary in versions.BINARIES:
            if not built(binary.name):
                build_one(binary, folder, report)
            for name in binary.names:
                link(folder, name, binary.name)
    return folder


@contextlib.contextmanager
def only_builder(folder: Path, report: Report) -> Iterator[None]:
    """Hold the folder's lock: a second builder waits and then finds the work done."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another build is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Under the lock every temporary file belongs to a builder that died. (Its compiler may still be writing one,
        # which is why the names carry the builder's process id.)
        for leftover in folder.glob(".*.partial"):
            leftover.unlink()
        yield


def link(folder: Path, name: str, target: str | Path) -> None:
    """Let `name` in `folder` be the program `target` (there, if it is no path), in one step."""
    partial = folder / f".{name}.{os.getpid()}.partial"
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(folder / name)


def build_one(binary: versions.Binary, folder: Path, report: Report, modules: Path = versions.MODULES) -> None:
    """Build one program of the module in `modules`. Call it under the folder's lock. Raises `BuildError`."""
    started = time.monotonic()
    partial = folder / f".{binary.name}.{os.getpid()}.partial"
    stamps = " ".join(f"-X {variable}={value}" for variable, value in binary.stamps)
    command = ["go", "build", "-v", *FLAGS, "-ldflags", f"-s -w {stamps}", "-o", str(partial), "."]
    module = modules / binary.name
    report(f"{binary.name}: {', '.join(binary.names) or 'one program'}")
    with subprocess.Popen(
        command,
        cwd=module,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        last_lines = _follow(process, binary.name, _packages(module), started, report)
    if process.returncode != 0:
        raise BuildError(f"`go build` in {module} failed:\n" + "\n".join(last_lines))
    partial.replace(folder / binary.name)
    report(f"{binary.name}: built in {time.monotonic() - started:.0f} s")


def _environment() -> dict[str, str]:
    return COLLECTION | os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}


def _packages(module: Path) -> int:
    """How many packages the program of a module is compiled from; 0 if Go does not say."""
    command = ["go", "list", "-mod=readonly", "-deps", "."]
    done = subprocess.run(command, cwd=module, env=_environment(), capture_output=True, text=True, check=False)
    return len(done.stdout.splitlines()) if done.returncode == 0 else 0


def _follow(process: subprocess.Popen[str], title: str, total: int, started: float, report: Report) -> deque[str]:
    """Report progress while `go build -v` names the packages it compiles; return its last lines."""
    last_lines: deque[str] = deque(maxlen=20)
    packages = 0
    reported = started
    assert process.stdout is not None
    for line in map(str.rstrip, process.stdout):
        last_lines.append(line)
        packages += not line.startswith("go: ")
        now = time.monotonic()
        if now - reported >= HEARTBEAT_SECONDS:
            reported = now
            report(f"{title}: {progress(now - started, packages, total)}")
    return last_lines


def progress(seconds: float, packages: int, total: int) -> str:
    """How far a compilation is after `seconds`; with a rough estimate once that is based on some packages."""
    if not total // 20 < packages < total:
        return f"{seconds:.0f} s, {packages} packages compiled"
    left = seconds * (total - packages) / packages
    return f"{seconds:.0f} s, {packages} of {total} packages compiled, about {left:.0f} s left"


def main() -> int:
    started = time.monotonic()
    try:
        folder = build(report=lambda line: print(line, flush=True))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{', '.join(versions.CLUSTER)} are in {folder} ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
