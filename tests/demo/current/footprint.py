"""A record of everything that the demo creates in a cluster, kept in a file until all of it is removed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from demo.current.context import Context
from localcluster.client import CommandError

LABEL = "checkpoint-demo"
"""On the training's pods; its value is the demo's name."""
INSTANCE = "app.kubernetes.io/instance"
"""The chart's label on everything of a release."""
CLUSTER_WIDE = (
    "clusterroles,clusterrolebindings,customresourcedefinitions,"
    "mutatingadmissionpolicies,mutatingadmissionpolicybindings,"
    "validatingadmissionpolicies,validatingadmissionpolicybindings"
)
TIMEOUT = "--timeout=180s"


@dataclass
class Footprint:
    """All that one demo leaves in a cluster while it runs.

    Attributes:
        context: Name of the context, and `server` the URL of its API server.
        name: Of its namespace and of its Helm release: nothing else is called so.
        cordoned: Name of the node that it has cordoned; empty: none.
        folder: URL of its folder in the user's bucket; empty: none.
        erasure: Arguments of kubectl that delete the folder's objects; empty while nothing can be in it.
    """

    file: Path = field(repr=False)
    context: str
    server: str
    name: str
    cordoned: str = ""
    folder: str = ""
    erasure: list[str] = field(default_factory=list)

    @classmethod
    def fresh(cls, file: Path, cluster: Context) -> Footprint:
        """A footprint with a name of its own, not written yet."""
        return cls(file, cluster.name, cluster.server, f"checkpoint-demo-{secrets.token_hex(3)}")

    @classmethod
    def found(cls, file: Path) -> Footprint | None:
        """What an earlier demo left, or None."""
        return cls(file, **json.loads(file.read_text())) if file.exists() else None

    @property
    def cluster(self) -> Context:
        return Context(self.context, self.server)

    def write(self) -> None:
        values = asdict(self)
        del values["file"]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(values, indent=1) + "\n")

    def cordon(self, node: str) -> None:
        """Remember the node that is about to be cordoned."""
        self.cordoned = node
        self.write()

    def remove(self) -> list[str]:
        """Remove everything, step by step; return what could not be removed, empty if nothing is left."""
        # The training ends first, so that nothing is written any more into what is removed next.
        steps: list[tuple[str, Callable[[], object]]] = [
            (f"uncordon node {self.cordoned}", self._uncordon),
            (f"delete the jobs in namespace {self.name}", self._stop_training),
            (f"uninstall release {self.name}", self._uninstall),
            (f"delete {self.folder}", self._erase),
            (f"delete namespace {self.name}", self._delete_namespace),
            (f"delete what belongs to release {self.name} outside namespaces", self._delete_rest),
        ]
        problems = []
        for what, step in steps:
            try:
                step()
            except CommandError as error:
                problems.append(f"{what}: {error}")
        if not problems:
            self.file.unlink(missing_ok=True)
        return problems

    def by_hand(self) -> str:
        """Commands that remove everything, for people."""
        kubectl, helm = f"kubectl --context={self.context}", f"helm --kube-context={self.context}"
        lines = [f"  {kubectl} uncordon {self.cordoned}"] if self.cordoned else []
        lines += [
            f"  {helm} uninstall {self.name} --namespace={self.name}",
            f"  {kubectl} delete namespace {self.name}",
            f"  {kubectl} delete {CLUSTER_WIDE} --selector={INSTANCE}={self.name}",
        ]
        lines += [f"  and delete the objects below {self.folder}"] if self.folder else []
        return "\n".join(lines)

    def _uncordon(self) -> None:
        if self.cordoned and self._there("node", self.cordoned):
            self.cluster.kubectl("uncordon", self.cordoned)
        self.cordon("")

    def _stop_training(self) -> None:
        if self._there("namespace", self.name):
            arguments = (f"--namespace={self.name}", "delete", "jobs", "--all", "--cascade=foreground", TIMEOUT)
            self.cluster.kubectl(*arguments)

    def _uninstall(self) -> None:
        self.cluster.helm(
            "uninstall", self.name, f"--namespace={self.name}", "--ignore-not-found", "--wait", "--timeout=180s"
        )

    def _erase(self) -> None:
        if self.erasure:
            self.cluster.kubectl(*self.erasure)

    def _delete_namespace(self) -> None:
        self.cluster.kubectl("delete", "namespace", self.name, "--ignore-not-found", TIMEOUT)

    def _delete_rest(self) -> None:
        """What is left when Helm was interrupted."""
        served = self.cluster.kubectl("api-resources", "--output=name", check=False).split()
        kinds = [name for name in served if name.partition(".")[0] in CLUSTER_WIDE.split(",")]
        self.cluster.kubectl("delete", ",".join(kinds), f"--selector={INSTANCE}={self.name}", TIMEOUT)

    def _there(self, kind: str, name: str) -> bool:
        return bool(self.cluster.kubectl("get", kind, name, "--ignore-not-found", "--output=name").strip())
