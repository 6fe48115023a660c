"""`helm upgrade` from the chart of an earlier commit to the package of a release, on a real API server.

`chart-355deaf.tgz` is the chart as it was at commit 355deaf, made with `git archive`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from localcluster import controlplane, network, requirements, workspace
from localcluster.client import ApiServer
from localcluster.fixtures import require
from release.facts import Release
from support.admission import Namespace, checkpoint, snapshot
from support.releases import only

pytestmark = pytest.mark.api

EARLIER = Path(__file__).with_name("chart-355deaf.tgz")
SPEC: dict[str, Any] = {
    "storage": {
        "url": "s3://bucket/run",
        "endpoint": "https://s3.example.com",
        "region": "eu-1",
        "addressingStyle": "Path",
        "credentialsSecret": {"name": "s3-keys"},
    },
    "save": {"everySteps": 500, "every": "15m", "onTermination": True},
    "overwritePolicy": "Replace",
    "retention": {
        "keepLast": 3,
        "keepEverySteps": 5000,
        "keepEvery": "24h",
        "keepBest": [{"metric": "loss", "mode": "Min", "count": 2}],
        "maxAge": "720h",
        "maxTotalSize": "2Ti",
        "gracePeriod": "1h",
    },
    "restore": {
        "mode": "Latest",
        "verify": "Checksums",
        "maxFailuresPerSnapshot": 2,
        "maxFallback": 3,
        "onMissing": "Auto",
    },
    "reschedule": {"recreateBarePods": False},
    "suspend": False,
    "deletionPolicy": "Retain",
}
STATUS = {"claimedBy": "cluster/namespace/run", "snapshots": 1, "logSequence": 7}


def deployment(server: ApiServer) -> dict[str, Any]:
    command = ("get", "deployment", "ckpt-checkpoint-operator", "--namespace=operators", "--output=json")
    found: dict[str, Any] = json.loads(server.kubectl(*command))
    return found


def kinds(server: ApiServer) -> list[dict[str, Any]]:
    return [crd["spec"] for crd in json.loads(server.kubectl("get", "crds", "--output=json"))["items"]]


def lost(before: Any, after: Any) -> list[str]:
    """What `before` has and `after` has not. Fields that are new, with their defaults, are no loss."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [f"{name}{rest}" for name in before for rest in lost(before[name], after.get(name))]
    return [] if before == after else [f": {before!r} is {after!r}"]


def objects(namespace: Namespace) -> dict[str, Any]:
    """What users see of ours: specs, statuses and identities."""
    found = [namespace.read("checkpoints", "run"), namespace.read("checkpointsnapshots", "run-1000-7-abcdefg2")]
    return {
        one["kind"]: {"uid": one["metadata"]["uid"], "spec": one["spec"], "status": one.get("status")} for one in found
    }


@pytest.mark.usefixtures("helm")
def test_an_upgrade_from_an_earlier_chart_and_its_removal_keep_the_resources(quick: Path, made_from: Release) -> None:
    require(requirements.control_plane_problem())
    package = str(only(quick, "*.tgz"))
    with workspace.temporary("upgraded") as place:
        server = controlplane.start(place, network.free_ports()).api
        server.helm("install", "ckpt", str(EARLIER), "--namespace=operators", "--create-namespace")
        server.wait_for_kinds()
        namespace = Namespace.fresh(server)
        manifests = [checkpoint(**SPEC), snapshot()]
        for body in manifests:
            namespace.create(body)
        namespace.patch("checkpoints", "run", {"status": STATUS}, status=True)
        earlier, before, old = deployment(server), objects(namespace), kinds(server)

        server.helm("upgrade", "ckpt", package, "--namespace=operators")
        assert kinds(server) != old
        assert lost(before, objects(namespace)) == []
        namespace.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=_stream(manifests))
        assert lost(before, objects(namespace)) == []
        # A changed template is what makes the Deployment's controller replace the operator.
        later = deployment(server)
        assert later["metadata"]["uid"] == earlier["metadata"]["uid"]
        assert later["metadata"]["generation"] > earlier["metadata"]["generation"]
        (container,) = later["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"{made_from.image}:{made_from.semantic}"

        server.helm("uninstall", "ckpt", "--namespace=operators")
        assert lost(before, objects(namespace)) == []
        # Under another name: the CRDs that were left are taken as they are.
        server.helm("install", "other", package, "--namespace=elsewhere", "--create-namespace")
        server.helm("upgrade", "other", package, "--namespace=elsewhere")
        server.helm("uninstall", "other", "--namespace=elsewhere")
        assert lost(before, objects(namespace)) == []


def test_helm_finds_nothing_to_complain_about_in_the_package(helm: Path, quick: Path, tmp_path: Path) -> None:
    subprocess.run([helm, "lint", "--strict", only(quick, "*.tgz")], check=True, env={"HOME": str(tmp_path)})


def _stream(bodies: list[dict[str, Any]]) -> str:
    return "\n---\n".join(map(json.dumps, bodies))
