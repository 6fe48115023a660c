"""``report`` and ``ui`` of the cluster door."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_cli.cluster.door import NamedRun, of_checkpoint, of_namespace
from checkpoint_cli.cluster.kubectl import Body, Kubectl
from checkpoint_cli.options import PageFile, Port

if TYPE_CHECKING:
    from checkpoint_cli.ui.runs import SearchPlace


@of_checkpoint
def report(at: NamedRun, file: PageFile = "") -> None:
    """Write one HTML page about a run: its steps over time, goodput, storage, metrics, and why snapshots are kept.

    It reads the bucket with the Secret of the Checkpoint, which you must be allowed to get. The page contains
    everything it needs and opens without a network.

    Example: {program} report llama-7b
    """
    from checkpoint_cli.cluster.stores import settings_of
    from checkpoint_cli.report.file import write_report
    from checkpoint_sidecar.store.opening import open_store

    if at.selector:
        raise typer.BadParameter(f"a report is about a whole run: leave out @{at.selector}.")
    write_report(open_store(settings_of(at.kubectl, at.checkpoint())), file or f"{at.name}-report.html")


@of_namespace
def ui(
    kubectl: Kubectl,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Show runs of all namespaces.")] = False,
    port: Port = 0,
) -> None:
    """Show the runs of a namespace or of the cluster in a browser, live.

    It reads the buckets with the Secrets of the Checkpoints; a run whose Secret you may not get is shown with the
    reason. It listens on 127.0.0.1 only, changes nothing, and ends with Ctrl-C. The printed address contains a secret:
    other users of the machine cannot open the pages without it.

    Example: {program} ui --all-namespaces
    """
    from checkpoint_cli.ui.server import serve

    def places() -> Iterator[SearchPlace]:
        return (place_of(kubectl, each) for each in kubectl.checkpoints(everywhere=everywhere))

    serve(places, port=port)


def place_of(kubectl: Kubectl, checkpoint: Body) -> SearchPlace:
    """Return where the run of a Checkpoint is; its Secret is read when the store is opened."""
    from checkpoint_cli.cluster.stores import settings_of
    from checkpoint_cli.ui.runs import SearchPlace
    from checkpoint_sidecar.store.base import Store
    from checkpoint_sidecar.store.opening import open_store

    def opened(url: str) -> Store:
        from dataclasses import replace

        return open_store(replace(settings_of(kubectl, checkpoint), url=url))

    return SearchPlace(checkpoint["spec"]["storage"]["url"].rstrip("/"), opened, opened)
