"""Build the control plane, the kubelet and helm from source, once per machine.

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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from localcluster import versions

GO_MINIMUM = (1, 26)
HEARTBEAT_SECONDS = 10.0
"""How often a compilation that prints nothing of its own reports that it is alive."""

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


def build(names: Iterable[str] = versions.CLUSTER, report: Report = print) -> Path:
    """Build whatever of `names` is not in the cache yet; return the folder that holds them all."""
    folder = cache_folder()
    wanted = [binary for binary in versions.BINARIES if binary.name in set(names)]
    if all(built(binary.name) for binary in wanted):
        return folder
    if problem := toolchain_problem():
        raise BuildError(problem)
    folder.mkdir(parents=True, exist_ok=True)
    with only_builder(folder, report):
        for position, binary in enumerate(wanted, start=1):
            title = f"[{position}/{len(wanted)}] {binary.name}"
            if built(binary.name):
                report(f"{title}: ready")
            else:
                _build_one(binary, folder, title, report)
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


def _build_one(binary: versions.Binary, folder: Path, title: str, report: Report) -> None:
    started = time.monotonic()
    partial = folder / f".{binary.name}.{os.getpid()}.partial"
    stamps = " ".join(f"-X {variable}={value}" for variable, value in binary.stamps)
    command = ["go", "build", "-v", "-mod=readonly", "-trimpath", "-ldflags", f"-s -w {stamps}"]
    command += ["-o", str(partial), binary.package]
    report(f"{title}: compiling")
    with subprocess.Popen(
        command,
        cwd=versions.MODULES / binary.module,
        env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        last_lines = _follow(process, title, started, report)
    if process.returncode != 0:
        raise BuildError(f"`go build {binary.package}` failed:\n" + "\n".join(last_lines))
    partial.replace(folder / binary.name)
    report(f"{title}: built in {time.monotonic() - started:.0f} s")


def _follow(process: subprocess.Popen[str], title: str, started: float, report: Report) -> deque[str]:
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
            report(f"{title}: {now - started:4.0f} s, {packages} packages, now {line}")
    return last_lines


def main() -> int:
    started = time.monotonic()
    try:
        folder = build(report=lambda line: print(line, flush=True))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"all {len(versions.BINARIES)} binaries are in {folder} ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
