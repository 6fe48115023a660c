"""The demo on the cluster of the current context: check, ask, create, tell, and remove in any case."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from demo import installation, manifests
from demo.current import facts, images, preflight
from demo.current.context import NoContextError, current
from demo.current.facts import Facts, UnreachableError
from demo.current.footprint import LABEL, Footprint
from demo.current.images import Programs
from demo.current.preflight import Bucket, RefusedError
from demo.current.workbench import SCRIPTS_FOLDER, START_SECONDS, Workbench, scripts
from demo.interruptions import Interruption
from demo.manifests import REPOSITORY
from demo.story import STEPS, Setting, Story
from demo.voice import Voice
from localcluster.client import CommandError, helm_program

FOLDER = REPOSITORY / "build" / "demo"
REFUSED = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        image: An image that the cluster can pull; empty: build one and load it.
        bucket: URL of the user's bucket; empty: serve one in the cluster.
        keep: Leave everything in the cluster.
        yes: Do not ask.
        programs: Replaces the programs of an image; for tests.
    """

    image: str = ""
    bucket: str = ""
    keep: bool = False
    yes: bool = False
    folder: Path = FOLDER
    programs: Programs | None = None

    @property
    def footprint_file(self) -> Path:
        return self.folder / "current.json"


@dataclass(frozen=True)
class _Plan:
    """What was decided before anything is created."""

    facts: Facts
    bucket: Bucket | None
    footprint: Footprint
    interruption: Interruption


def run(request: Request) -> int:
    """Run the demo; return the exit status."""
    voice = Voice()
    try:
        plan = _decide(request, voice)
        if not _agreed(request, plan.footprint, voice):
            return REFUSED
        programs = request.programs or images.from_image(images.provide(request.image, plan.facts.nodes, voice.timed))
    except (NoContextError, UnreachableError, RefusedError, images.ImageError, FileNotFoundError) as error:
        voice.problem(str(error))
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    return _run(request, plan, programs, voice)


def remove(request: Request) -> int:
    """Remove what an earlier demo left; return the exit status."""
    voice = Voice()
    footprint = Footprint.found(request.footprint_file)
    if footprint is None:
        voice.plain("No demo is left in any cluster.")
        return 0
    return 0 if _removed(footprint, voice) else 1


def clean_up_when_ended() -> None:
    """Let SIGTERM and SIGHUP end this process like Ctrl-C, which removes what was created."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _decide(request: Request, voice: Voice) -> _Plan:
    """Check everything that can be checked without creating anything."""
    if earlier := Footprint.found(request.footprint_file):
        raise RefusedError(
            f"start a demo: {earlier.name} is still in the cluster of context {earlier.context}. "
            "`make down CLUSTER=current` removes it."
        )
    helm_program()
    cluster = current()
    found = facts.gather(cluster)
    preflight.check(found, cluster.name)
    bucket = preflight.bucket(request.bucket, os.environ) if request.bucket else None
    footprint = Footprint.fresh(request.footprint_file, cluster)
    if bucket:
        footprint.folder = f"{bucket.url}/{footprint.name}"
        bucket = replace(bucket, url=footprint.folder)
    interruption, remark = preflight.interruption(found, f"{LABEL}={footprint.name}", footprint.cordon)
    if remark:
        voice.remark(remark)
    if request.programs is None and not request.image:
        images.check(found.nodes)
    return _Plan(found, bucket, footprint, interruption)


def _agreed(request: Request, footprint: Footprint, voice: Voice) -> bool:
    """Ask before anything is created; say what. Without a terminal there is no answer."""
    voice.plain(
        f"This installs the operator, with its definitions, into the cluster of context {footprint.context} "
        f"({footprint.server}), trains in namespace {footprint.name}, interrupts that training"
        f"{f', writes below {footprint.folder}' if footprint.folder else ''}, and removes it all again."
    )
    if request.yes:
        return True
    if not sys.stdin.isatty():
        voice.problem("ask for your consent: this is no terminal. YES=1 gives it.")
        return False
    return input("Continue? [y/N] ").strip().lower() in ("y", "yes")


def _run(request: Request, plan: _Plan, programs: Programs, voice: Voice) -> int:
    footprint = plan.footprint
    status = 1
    footprint.write()
    try:
        setting = _install(request, plan, programs, voice)
        report = Story(setting, voice, seconds_to_cluster=voice.seconds).tell()
        status = 0 if voice.judge(report, request.folder / "report.json") else 1
    except (TimeoutError, CommandError, OSError) as error:
        voice.problem(f"the demo did not get through: {error}")
        voice.plain(installation.logs(footprint.cluster, namespace=footprint.name))
    except KeyboardInterrupt:
        status = INTERRUPTED
        voice.problem("interrupted")
    if request.keep:
        _say_how_to_look_around(footprint, voice)
        return status
    return status if _removed(footprint, voice) else max(status, 1)


def _install(request: Request, plan: _Plan, programs: Programs, voice: Voice) -> Setting:
    cluster, name = plan.footprint.cluster, plan.footprint.name
    workbench = Workbench(cluster, name, programs, plan.bucket)
    with voice.timed(f"namespace {name}, with a pod for {'the data' if plan.bucket else 'an object store'}"):
        cluster.kubectl("create", "namespace", name)
        bucket = workbench.start()
    if plan.bucket:
        plan.footprint.erasure = workbench.running(bucket, "store.py", "erase", bucket.url)
        plan.footprint.write()
    with voice.timed(f"operator installed: helm install {name}"):
        chart_values = values(plan.facts, name, programs, bucket)
        installation.install_chart(cluster, request.folder, name, name, chart_values)
    return Setting(
        cluster=cluster,
        namespace=name,
        bucket=bucket.url,
        storage=bucket,
        python=scripts(programs.training),
        script=f"{SCRIPTS_FOLDER}/{manifests.TRAINING_SCRIPT.name}",
        interruption=plan.interruption,
        compare=lambda left, right: workbench.compare(bucket, left, right, STEPS),
        labels={LABEL: name},
        start_seconds=START_SECONDS,
        cluster_id="" if plan.facts.injects else plan.facts.uid,
    )


def values(found: Facts, name: str, programs: Programs, bucket: Bucket) -> dict[str, Any]:
    """Values of the chart for an operator that serves the demo's namespace and leaves nothing behind."""
    allowed = [urlsplit(bucket.endpoint).hostname] if bucket.endpoint else []
    return {
        **programs.operator,
        "watchNamespaces": [name],
        "clusterId": found.uid,
        "storageEndpoints": {"allow": allowed},
        "injection": {"mode": "On" if found.injects else "Off"},
        # The cluster's own roles stay as they are, and the definitions go with the release.
        "rbac": {"aggregate": False},
        "crds": {"keep": False},
    }


def _removed(footprint: Footprint, voice: Voice) -> bool:
    """Remove everything; say so, or what is left."""
    began = voice.seconds
    try:
        problems = footprint.remove()
    except KeyboardInterrupt:
        problems = ["interrupted"]
    if not problems:
        voice.stage(f"nothing of {footprint.name} is left in the cluster", voice.seconds - began)
        return True
    for problem in problems:
        voice.problem(f"remove {footprint.name} from the cluster: {problem}")
    voice.plain(f"`make down CLUSTER=current` tries again; by hand:\n{footprint.by_hand()}")
    return False


def _say_how_to_look_around(footprint: Footprint, voice: Voice) -> None:
    voice.plain(
        f"Everything is still there. Look around with:\n\n"
        f"  kubectl --context={footprint.context} --namespace={footprint.name} get ckpt,ckptsnap,pods\n\n"
        "and remove it with `make down CLUSTER=current`."
    )
