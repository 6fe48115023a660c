"""The arguments that all verbs of the cluster door share: a name, a namespace, a context."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from checkpoint_cli.cluster.convert import snapshot_records
from checkpoint_cli.cluster.kubectl import Body, Kubectl
from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.records import SnapshotRecord
from checkpoint_cli.signatures import with_parameters
from checkpoint_sidecar.core.selectors import choose

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")

Name = Annotated[str, typer.Argument(metavar="NAME[@SELECTOR]", help="The Checkpoint, and perhaps a snapshot of it.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace; default: that of the context.")]
Context = Annotated[str, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[str, typer.Option("--kubeconfig", help="Path of the kubeconfig.")]
_SHARED = {"namespace": Namespace, "context": Context, "kubeconfig": Kubeconfig}


@dataclass(frozen=True)
class NamedRun:
    """A Checkpoint in a cluster, and the snapshot that is meant.

    Attributes:
        selector: As after the "@"; empty if only the run was named.
    """

    kubectl: Kubectl
    name: str
    selector: str

    @property
    def shown(self) -> str:
        """Namespace and name, for messages."""
        return f"{self.kubectl.namespace}/{self.name}"

    def checkpoint(self) -> Body:
        """Return the Checkpoint."""
        return self.kubectl.checkpoint(self.name)

    def snapshots(self, checkpoint: Body) -> tuple[SnapshotRecord, ...]:
        """Return its snapshots, newest first."""
        return snapshot_records(checkpoint, self.kubectl.snapshots(self.name))

    def snapshot(self, checkpoint: Body, snapshots: tuple[SnapshotRecord, ...]) -> SnapshotRecord:
        """Return the snapshot that the selector means; without one, the latest."""
        status = checkpoint.get("status") or {}
        known = {each.id: each for each in snapshots}
        latest, best = (known.get((status.get(mark) or {}).get("snapshot", "")) for mark in ("latest", "best"))
        return choose(
            snapshots,
            self.selector,
            run=self.shown,
            latest=latest,
            best=best,
            without_best="its status names none: spec.retention.keepBest defines the best",
            preferred=_preferred,
        )


def _preferred(found: Sequence[SnapshotRecord]) -> SnapshotRecord:
    """Return the newest live one of some snapshots, which are newest first; without one, the newest."""
    return next((each for each in found if each.state == "Live"), found[0])


def of_checkpoint(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb ``NAME[@SELECTOR]``, ``-n``, ``--context`` and ``--kubeconfig``; it gets them as ``at``."""

    def run(name: str, namespace: str, context: str, kubeconfig: str, **own: Any) -> None:
        named, _, selector = name.partition("@")
        if not _NAME.fullmatch(named):
            raise CommandRefusedError(
                "read the name",
                repr(named),
                "it is not the name of a Checkpoint",
                "A URL is for the program checkpoint." if "://" in name else "Write NAME or NAME@SELECTOR.",
                status=ExitStatus.USAGE,
            )
        function(at=NamedRun(Kubectl.open(namespace, context, kubeconfig), named, selector), **own)

    return with_parameters(function, run, made={"at"}, arguments={"name": Name}, options=_SHARED)


def of_whole_checkpoint(function: Callable[..., None]) -> Callable[..., None]:
    """Do as ``of_checkpoint`` does, and refuse a selector."""

    @functools.wraps(function)
    def checked(*, at: NamedRun, **own: Any) -> None:
        if at.selector:
            raise typer.BadParameter(f"this is about a whole run: leave out @{at.selector}.")
        function(at=at, **own)

    return of_checkpoint(checked)


def of_namespace(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb ``-n``, ``--context`` and ``--kubeconfig``; it gets them as ``kubectl``."""

    def run(namespace: str, context: str, kubeconfig: str, **own: Any) -> None:
        function(kubectl=Kubectl.open(namespace, context, kubeconfig), **own)

    return with_parameters(function, run, made={"kubectl"}, arguments={}, options=_SHARED)
