"""`make demo`: put up a cluster, tell the story, judge it, take the cluster down."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from demo import installation
from demo.manifests import REPOSITORY
from demo.story import NAMESPACE, Story, Voice
from localcluster import cluster as clusters
from localcluster.client import CommandError
from localcluster.imagebuild import ImageError
from localcluster.processes import ProcessError
from localcluster.workspace import Workspace, state_folder

BUILD = REPOSITORY / "build" / "demo"
REPORT = BUILD / "report.json"


def main(
    keep: Annotated[bool, typer.Option(help="Leave the cluster running and say how to look around.")] = False,
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()

    def stage(text: str, seconds: float) -> None:
        console.print(
            f"[bold green]✓[/] [{time.monotonic() - began:5.1f} s] {text} [dim]({seconds:.1f} s)[/]", markup=True
        )

    def command(line: str, output: str) -> None:
        console.print(f"[bold]$ {line}[/]")
        console.print(output.rstrip(), markup=False)

    voice = Voice(stage, command, lambda text: console.print(f"  {text}", markup=False))
    BUILD.mkdir(parents=True, exist_ok=True)
    place = Workspace(state_folder() / "default")
    place.erase()  # what a demo that was killed, or KEEP=1, left behind
    failed = True
    try:
        cluster = clusters.up(place, stage)
        report = Story(cluster, BUILD, voice, seconds_to_cluster=time.monotonic() - began).tell()
        report.write(REPORT)
        problems = report.problems()
        failed = bool(problems)
        for problem in problems:
            console.print(f"[bold red]✗[/] {problem}")
        console.print(REPORT.read_text(), markup=False)
    except (TimeoutError, CommandError, ProcessError, ImageError, OSError) as error:
        console.print("[bold red]✗[/] the demo did not get through: ", end="")
        console.print(str(error), markup=False)
        if "cluster" in locals():
            console.print(installation.logs(cluster), markup=False)
    finally:
        if keep:
            _say_how_to_look_around(console, place.directory)
        else:
            place.erase()
            stage("nothing is left running", time.monotonic() - began)
    sys.exit(failed)


def _say_how_to_look_around(console: Console, directory: Path) -> None:
    console.print(
        f"The cluster is still up. Look around with:\n\n  export KUBECONFIG={directory}/admin.kubeconfig", markup=False
    )
    console.print(
        f"  .venv/bin/kubectl -n {NAMESPACE} get ckpt,ckptsnap,pods\n\nand remove it with `make down`.", markup=False
    )


if __name__ == "__main__":
    typer.run(main)
