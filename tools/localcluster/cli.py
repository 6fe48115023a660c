"""`python -m localcluster`: a real two-node Kubernetes and an S3 server on this machine, without Docker."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from localcluster import build, requirements
from localcluster import cluster as localcluster
from localcluster.cluster import Cluster, NoClusterError, RequirementError
from localcluster.processes import ProcessError
from localcluster.workspace import NotAWorkspaceError, Workspace, erase_abandoned, state_folder, temporary_folder

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_show_locals=False)
out = Console(highlight=False, soft_wrap=True)

Directory = Annotated[
    Path,
    typer.Option(
        "--directory", help="Holds everything of one cluster.", default_factory=lambda: state_folder() / "default"
    ),
]


@contextmanager
def _explained() -> Iterator[None]:
    """Errors that are for the user end the command with their message only."""
    try:
        yield
    except (ProcessError, RequirementError, NoClusterError, NotAWorkspaceError, build.BuildError, OSError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None


@app.command()
def up(directory: Directory) -> None:
    """Build what is missing and start the cluster; nothing to do if it runs."""
    with _explained():
        if problem := requirements.cluster_problem(built=False):
            raise RequirementError(problem)
        place = Workspace(directory)
        if _runs(place):
            out.print(f"The cluster in {place.directory} is up already.")
            return
        started = time.monotonic()
        place.erase()
        build.build(report=out.print)
        try:
            localcluster.up(place, lambda stage, seconds: out.print(f"{seconds:6.1f} s  {stage}"))
        except ProcessError:
            out.print(f"What was started is left for a look at {place.directory / 'logs'}; `down` ends it.")
            raise
        out.print(f"{time.monotonic() - started:6.1f} s  in all; the cluster lives in {place.directory}")
        out.print(f'\n  eval "$({shlex.join([sys.executable, "-m", "localcluster", "env"])})"; kubectl get nodes')


@app.command()
def down(directory: Directory) -> None:
    """End the cluster, or what a crash left of it, and remove every trace; also those that test runs abandoned."""
    with _explained():
        Workspace(directory).erase()
        erase_abandoned(temporary_folder())


@app.command()
def status(directory: Directory) -> None:
    """Show what runs; exit status 1 unless all of it does."""
    with _explained():
        cluster = localcluster.load(directory)
        table = Table("PROCESS", "STATE", "PID", "LOG", box=None)
        for daemon in Workspace(directory).daemons.all():
            identity = daemon.identity
            state = "running" if identity else "stopped"
            table.add_row(daemon.name, state, str(identity.pid) if identity else "", str(daemon.log))
        out.print(table)
        out.print(f"\nAPI server    {cluster.url}\nobject store  {cluster.object_store.endpoint}")
        unready = [name for name in cluster.node_names if not localcluster.node_is_ready(cluster, name)]
        for name in cluster.node_names:
            out.print(f"{name:13} {'not ready' if name in unready else 'ready'}")
    if unready or not _runs(Workspace(directory)):
        raise typer.Exit(1)


@app.command()
def kubeconfig(directory: Directory) -> None:
    """Print the path of the administrator's kubeconfig file."""
    with _explained():
        print(localcluster.load(directory).kubeconfig)


@app.command()
def env(directory: Directory) -> None:
    """Print shell commands that point kubectl, helm and S3 clients at the cluster."""
    with _explained():
        cluster = localcluster.load(directory)
        for name, value in {**cluster.environment, **cluster.object_store.environment}.items():
            print(f"export {name}={shlex.quote(value)}")
        programs = f"{Path(sys.prefix, 'bin')}:{build.cache_folder()}"
        print(f'export PATH={shlex.quote(programs)}:"$PATH"')


def _runs(place: Workspace) -> bool:
    """Whether a cluster was started here and none of its processes has ended since."""
    try:
        cluster: Cluster = localcluster.load(place.directory)
    except NoClusterError:
        return False
    return cluster.answers() and all(daemon.identity for daemon in place.daemons.all())
