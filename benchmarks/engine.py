"""The data engine beside torch's own checkpoints and other clients, in one run against the same servers.

    make bench
    PYTHONPATH=tests:tools .venv/bin/python benchmarks/engine.py --quick

Prints one table and writes ``build/bench/engine.json``. See docs/performance.md for what is measured and how.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.progress import track

import processes
import sink
import table
from runs import FULL, PEERS, QUICK, SYSTEMS, Places, Run, Scale, Section, planned
from summary import figures

RESULT = Path("build/bench/engine.json")
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
_BEGIN, _END = "<!-- figures: made by benchmarks/engine.py -->", "<!-- end of figures -->"
_PACKAGES = ("torch", "s3fs", "aiobotocore", *PEERS, "crc32c", "checkpoint-operator")


def main(
    quick: Annotated[bool, typer.Option(help="Little data, few repetitions: for a look, not for figures.")] = False,
    only: Annotated[list[Section], typer.Option(help="Measure only these.")] = list(Section),  # noqa: B006
    system: Annotated[list[str], typer.Option(help="Compare only these.")] = list(SYSTEMS),  # noqa: B006
    model_bytes: Annotated[int, typer.Option(help="Size of the model in bytes; at least one layer.")] = 0,
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = RESULT,
    document: Annotated[bool, typer.Option(help="Measure nothing: put the figures into docs/performance.md.")] = False,
) -> None:
    """Measure saving and loading, and print one table."""
    if document:
        _document(json.loads(output.read_text()))
        return
    began = time.monotonic()
    scale = QUICK if quick else FULL
    if model_bytes:
        scale = replace(scale, size=dict.fromkeys(SYSTEMS, model_bytes), other_bytes=model_bytes)
    failures: list[str] = []
    results = list(_measured(scale, set(only), set(system), failures))
    report = _surroundings() | figures(results) | {"seconds": round(time.monotonic() - began, 1)}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    Console(width=None if sys.stdout.isatty() else 140).print(table.terminal(report))
    if failures:
        sys.exit("\n".join(failures))


def _measured(
    scale: Scale, sections: set[Section], systems: set[str], failures: list[str]
) -> Iterator[tuple[Run, Mapping[str, Any]]]:
    """Every run that succeeds, with its result: ten minutes are not lost because one system fails."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder())
        places = Places(
            sink=stack.enter_context(sink.running()),
            folder=folder,
            seaweedfs=stack.enter_context(_seaweedfs()) if Section.SEAWEEDFS in sections else None,
            tls=stack.enter_context(_tls()) if sections & {Section.TLS, Section.TLS_SHARE} else None,
        )
        runs = [
            run
            for run in planned(scale, places)
            if run.section in sections
            and run.system in systems
            and (run.system not in PEERS or find_spec(run.system.replace("-", "_")))
        ]
        console = Console(stderr=True)
        for run in track(runs, "measuring", console=console, transient=True):
            console.print(str(run), highlight=False)
            try:
                yield run, processes.start(run.experiment, run.parameters, ranks=run.ranks, environment=run.environment)
            except processes.ExperimentError as error:
                failures.append(f"{run} failed. {error}")
            _empty(folder)
            sink.empty(places.sink)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """On the disk of this checkout: the system's temporary folder is often in memory."""
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULT.parent.resolve()) as folder:
        yield folder


def _empty(folder: str) -> None:
    for saved in Path(folder).iterdir():
        shutil.rmtree(saved)


@contextlib.contextmanager
def _tls() -> Iterator[tuple[str, str]]:
    """A sink that speaks TLS, and the certificate of its authority."""
    from localcluster.pki import Authority

    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        pair = authority.issue("sink", user="sink", hosts=("127.0.0.1",))
        with sink.running(pair.certificate, pair.key) as endpoint:
            yield endpoint, str(authority.certificate)


@contextlib.contextmanager
def _seaweedfs() -> Iterator[tuple[Mapping[str, str], str] | None]:
    from localcluster import network, objectstore, workspace

    if objectstore.weed() is None:
        yield None
        return
    with workspace.temporary("objects") as place:
        daemon, store = objectstore.start(place.daemons, network.free_ports())
        objectstore.wait_ready(daemon, store)
        server = {"endpoint": store.endpoint, "access_key": store.access_key, "secret_key": store.secret_key}
        yield server, store.bucket("benchmark")


def _surroundings() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_before": os.getloadavg()[0],
    }
    return {"machine": machine, "versions": versions}


def _document(report: Mapping[str, Any]) -> None:
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    machine = report["machine"]
    about = f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB of memory, "
    about += ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    DOCUMENT.write_text(f"{before}{_BEGIN}\n{about}\n\n{table.markdown(dict(report))}\n{_END}{after}")


if __name__ == "__main__":
    typer.run(main)
