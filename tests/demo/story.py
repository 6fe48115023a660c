"""The demo, told in order: apply, train, interrupt, resume, compare."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from demo import manifests
from demo.comparison import Comparison
from demo.interruptions import Interruption, Target
from demo.report import Report
from demo.training import TrainingRun, wait_for
from demo.voice import Voice
from localcluster.client import Client
from localcluster.images import PodPython

STEPS = 60
INTERRUPT_AFTER_STEP = 25
PAUSE_SECONDS = 0.4


@dataclass(frozen=True)
class Setting:
    """Where the story happens: all that differs between the local cluster and any other.

    Attributes:
        bucket: URL below which both runs keep their snapshots.
        python: What a pod needs to train.
        script: Path of `examples/train.py` in the pods.
        interruption: How the pod is made to leave.
        compare: Compares the last step of two runs, given by their URLs.
        labels: Further labels of the pods.
        first_node: Where the first pod had better run; empty: anywhere.
        start_seconds: Longest time that a pod may take to start; pulling an image counts.
        cluster_id: Not empty where the cluster cannot inject: pods then name their run themselves.
    """

    cluster: Client
    namespace: str
    bucket: str
    storage: manifests.Storage
    python: PodPython
    script: str
    interruption: Interruption
    compare: Callable[[str, str], Comparison]
    labels: Mapping[str, str] = field(default_factory=dict)
    first_node: str = ""
    start_seconds: float = 90.0
    cluster_id: str = ""


class Story:
    """One run of the demo on a cluster with the operator installed and the namespace created.

    Args:
        seconds_to_cluster: How long the cluster took, for the report.
    """

    def __init__(self, setting: Setting, voice: Voice, *, seconds_to_cluster: float) -> None:
        self._setting = setting
        self._voice = voice
        self._seconds_to_cluster = seconds_to_cluster

    def tell(self) -> Report:
        """Run everything. Raises `TimeoutError` or `CommandError` when something does not happen."""
        run, undisturbed = (
            TrainingRun(self._setting.cluster, self._setting.namespace, name) for name in ("llama", "undisturbed")
        )
        try:
            self._apply(run)
            self._train_until(run, INTERRUPT_AFTER_STEP)
            evicted_at, nodes, seconds_away = self._interrupt(run)
            status = self._finish(run)
            compared = self._compare(run, undisturbed)
        finally:
            run.close()
            undisturbed.close()
        restored_step = status["lastRestore"].get("step", 0)
        return Report(
            nodes=nodes,
            moved=self._setting.interruption.moves,
            evicted_at_step=evicted_at,
            restored_step=restored_step,
            lost_steps=status["lastRestore"].get("lostSteps", evicted_at - restored_step),
            snapshots_committed=len([event for event in run.events() if event["reason"] == "SnapshotCommitted"]),
            tensors_compared=compared.tensors,
            bit_identical=compared.identical,
            seconds_to_cluster=round(self._seconds_to_cluster, 1),
            seconds_eviction_to_first_step=round(seconds_away, 1),
            seconds_total=round(self._voice.seconds, 1),
        )

    def url(self, run: TrainingRun) -> str:
        return f"{self._setting.bucket}/{run.name}"

    def _apply(self, run: TrainingRun) -> None:
        store = self._setting.storage
        checkpoint = manifests.checkpoint(run.name, self.url(run), store)
        with self._voice.timed(f"kubectl apply: Checkpoint {run.name} is Ready"):
            run.apply(manifests.secret(store), checkpoint)
            run.wait_condition("Ready")

    def _start(self, run: TrainingRun, *, pause_seconds: float) -> None:
        setting = self._setting
        ranks = ["--standalone", "--nproc-per-node=2"]
        template = manifests.pod_template(
            run.name,
            python=setting.python,
            command=manifests.torchrun(
                setting.python, ranks, steps=STEPS, pause_seconds=pause_seconds, script=setting.script
            ),
            prefer_node=setting.first_node,
            labels=setting.labels,
        )
        if setting.cluster_id:
            identity = f"{setting.cluster_id}/{setting.namespace}/{run.name}"
            template = manifests.written_by_hand(template, self.url(run), setting.storage, run=identity)
        run.apply(manifests.job_of(run.name, template))
        run.follow_next_pod(setting.start_seconds)

    def _train_until(self, run: TrainingRun, step: int) -> None:
        with self._voice.timed("a job of two FSDP ranks makes steps"):
            self._start(run, pause_seconds=PAUSE_SECONDS)
            run.wait_step(1)
        with self._voice.timed(f"step {step} reached, snapshots appear"):
            run.wait_step(step)
            run.wait_status("has seen the snapshot of step 20", lambda s: s.get("latest", {}).get("step", 0) >= 20)
        self._show(run, "get", "ckpt,ckptsnap")

    def _interrupt(self, run: TrainingRun) -> tuple[int, tuple[str, str], float]:
        """(last step of the evicted pod, its node and the next one, seconds from the interruption to the next step)."""
        cluster, interruption = self._setting.cluster, self._setting.interruption
        evicted = run.followers[-1]
        target = Target(run.namespace, evicted.pod, run.node_of(evicted.pod))
        self._voice.remark(f"pod {evicted.pod} is at step {evicted.last_step} on {target.node}")
        began = dt.datetime.now(dt.UTC)
        with self._voice.timed(f"{interruption.title(target)}: the pod saved on SIGTERM and left"):
            interruption.interrupt(cluster, target)
        evicted.finish()
        with self._voice.timed("the replacement pod made its first step"):
            replacement = run.follow_next_pod(self._setting.start_seconds)
            first = wait_for(
                "the first step after the eviction",
                replacement.first_step,
                timeout=120,
                context=lambda: f"{replacement.tail()}\n{run.describe()}",
            )
        next_node = run.node_of(replacement.pod)
        self._voice.remark(f"pod {replacement.pod} on {next_node} continues with: {first.text}")
        interruption.undo(cluster, target)
        return evicted.last_step, (target.node, next_node), (first.time - began).total_seconds()

    def _finish(self, run: TrainingRun) -> dict[str, Any]:
        with self._voice.timed(f"training finished: {STEPS} steps"):
            run.wait_finished()
            status = run.wait_status("has the last step", lambda s: s.get("latest", {}).get("step") == STEPS)
        self._show(run, "get", "ckpt,ckptsnap")
        self._show(run, "get", "ckpt", run.name, "-o", "jsonpath={.status.lastRestore}")
        columns = "custom-columns=REASON:.reason,MESSAGE:.message"
        about = "--field-selector=involvedObject.kind=Checkpoint"
        self._show(run, "get", "events", about, "--sort-by=.metadata.creationTimestamp", "-o", columns)
        return status

    def _compare(self, run: TrainingRun, undisturbed: TrainingRun) -> Comparison:
        with self._voice.timed("the same training, undisturbed, in one go"):
            self._apply(undisturbed)
            self._start(undisturbed, pause_seconds=0.0)
            undisturbed.wait_finished()
        with self._voice.timed("both final snapshots read by stock torch.distributed.checkpoint and compared"):
            compared = self._setting.compare(self.url(run), self.url(undisturbed))
        verdict = "bit-identical" if compared.identical else f"DIFFERENT in {', '.join(compared.differing)}"
        self._voice.remark(f"{compared.tensors} tensors of parameters and optimizer state: {verdict}")
        return compared

    def _show(self, run: TrainingRun, *arguments: str) -> None:
        self._voice.command(f"kubectl {' '.join(arguments)}", run.kubectl(*arguments))
