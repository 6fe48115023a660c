"""`make demo`: put up a cluster, tell the story, judge it, take the cluster down."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from demo import comparison, image, installation, manifests
from demo.interruptions import Drain
from demo.manifests import REPOSITORY
from demo.story import STEPS, Setting, Story
from demo.voice import Voice
from localcluster import cluster as clusters
from localcluster.client import CommandError
from localcluster.cluster import Cluster
from localcluster.imagebuild import ImageError
from localcluster.processes import ProcessError
from localcluster.workspace import Workspace, state_folder

BUILD = REPOSITORY / "build" / "demo"
NAMESPACE = "team-a"


def main(
    keep: Annotated[bool, typer.Option(help="Leave the cluster running and say how to look around.")] = False,
) -> None:
    voice = Voice()
    BUILD.mkdir(parents=True, exist_ok=True)
    place = Workspace(state_folder() / "default")
    place.erase()  # what a demo that was killed, or KEEP=1, left behind
    well = False
    try:
        cluster = clusters.up(place, voice.stage)
        seconds_to_cluster = voice.seconds
        _install(cluster, voice)
        report = Story(_setting(cluster), voice, seconds_to_cluster=seconds_to_cluster).tell()
        well = voice.judge(report, BUILD / "report.json")
    except (TimeoutError, CommandError, ProcessError, ImageError, OSError) as error:
        voice.problem(f"the demo did not get through: {error}")
        if "cluster" in locals():
            voice.plain(installation.logs(cluster))
    finally:
        if keep:
            _say_how_to_look_around(voice, place.directory)
        else:
            place.erase()
            voice.stage("nothing is left running", voice.seconds)
    sys.exit(not well)


def _install(cluster: Cluster, voice: Voice) -> None:
    with voice.timed("operator's image built (or found as built before)"):
        operator = image.build()
    with voice.timed("operator installed: helm install checkpoint-operator"):
        installation.install(cluster, BUILD, node=cluster.node_names[1], image=operator)
    cluster.kubectl("apply", "-f", "-", stdin=manifests.to_stdin(manifests.namespace(NAMESPACE)))


def _setting(cluster: Cluster) -> Setting:
    store = cluster.object_store

    def compare(left: str, right: str) -> comparison.Comparison:
        states = (comparison.read_step(url, STEPS, **store.storage_options()) for url in (left, right))
        return comparison.compare(*states)

    return Setting(
        cluster=cluster,
        namespace=NAMESPACE,
        bucket=f"s3://{store.bucket('training')}",
        storage=store,
        python=cluster.host_python(REPOSITORY),
        script=str(manifests.TRAINING_SCRIPT),
        interruption=Drain(),
        compare=compare,
        first_node=cluster.node_names[0],
    )


def _say_how_to_look_around(voice: Voice, directory: Path) -> None:
    voice.plain(
        f"The cluster is still up. Look around with:\n\n  export KUBECONFIG={directory}/admin.kubeconfig\n"
        f"  .venv/bin/kubectl -n {NAMESPACE} get ckpt,ckptsnap,pods\n\nand remove it with `make down`."
    )


if __name__ == "__main__":
    typer.run(main)
