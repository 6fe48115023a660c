"""The demo, told in order: install, apply, train, drain, resume, compare."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import comparison, image, installation, manifests
from demo.report import Report
from demo.training import TrainingRun, wait_for
from localcluster.cluster import Cluster

STEPS = 60
DRAIN_AFTER_STEP = 25
PAUSE_SECONDS = 0.4
NAMESPACE = "team-a"


@dataclass(frozen=True)
class Voice:
    """Functions that print the story: a stage with its duration, a command with its output, a remark."""

    stage: Callable[[str, float], None]
    command: Callable[[str, str], None]
    remark: Callable[[str], None]

    @contextmanager
    def timed(self, text: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.stage(text, time.monotonic() - started)


class Story:
    """One run of the demo on a cluster that is up.

    Args:
        folder: Where files of the demo go.
        seconds_to_cluster: How long the cluster took, for the report.
    """

    def __init__(self, cluster: Cluster, folder: Path, voice: Voice, *, seconds_to_cluster: float) -> None:
        self._cluster = cluster
        self._folder = folder
        self._voice = voice
        self._seconds_to_cluster = seconds_to_cluster
        self._bucket = cluster.object_store.bucket("training")

    def tell(self) -> Report:
        """Run everything. Raises `TimeoutError` or `CommandError` when something does not happen."""
        started = time.monotonic() - self._seconds_to_cluster
        first, second = self._cluster.node_names
        with self._voice.timed("operator's image built (or found as built before)"):
            operator = image.build()
        with self._voice.timed("operator installed: helm install checkpoint-operator"):
            installation.install(self._cluster, self._folder, node=second, image=operator)
        self._cluster.kubectl("apply", "-f", "-", stdin=manifests.to_stdin(manifests.namespace(NAMESPACE)))
        run = TrainingRun(self._cluster, NAMESPACE, "llama")
        undisturbed = TrainingRun(self._cluster, NAMESPACE, "undisturbed")
        try:
            self._apply(run)
            self._train_until(run, DRAIN_AFTER_STEP, prefer_node=first)
            evicted_at, nodes, seconds_away = self._drain(run)
            status = self._finish(run)
            compared = self._compare(run, undisturbed)
        finally:
            run.close()
            undisturbed.close()
        restored_step = status["lastRestore"].get("step", 0)
        return Report(
            nodes=nodes,
            evicted_at_step=evicted_at,
            restored_step=restored_step,
            lost_steps=status["lastRestore"].get("lostSteps", evicted_at - restored_step),
            snapshots_committed=len([event for event in run.events() if event["reason"] == "SnapshotCommitted"]),
            tensors_compared=compared.tensors,
            bit_identical=compared.identical,
            seconds_to_cluster=round(self._seconds_to_cluster, 1),
            seconds_eviction_to_first_step=round(seconds_away, 1),
            seconds_total=round(time.monotonic() - started, 1),
        )

    def url(self, run: TrainingRun) -> str:
        return f"s3://{self._bucket}/{run.name}"

    def _apply(self, run: TrainingRun) -> None:
        store = self._cluster.object_store
        checkpoint = manifests.checkpoint(run.name, self.url(run), store)
        with self._voice.timed(f"kubectl apply: Checkpoint {run.name} is Ready"):
            run.apply(manifests.secret(store), checkpoint)
            run.wait_condition("Ready")

    def _start(self, run: TrainingRun, *, pause_seconds: float, prefer_node: str = "") -> None:
        python = self._cluster.host_python(manifests.REPOSITORY)
        run.apply(
            manifests.job(
                run.name,
                python=python,
                checkpoint_name=run.name,
                steps=STEPS,
                pause_seconds=pause_seconds,
                prefer_node=prefer_node,
            )
        )
        run.follow_next_pod()

    def _train_until(self, run: TrainingRun, step: int, *, prefer_node: str) -> None:
        with self._voice.timed("a job of two FSDP ranks makes steps"):
            self._start(run, pause_seconds=PAUSE_SECONDS, prefer_node=prefer_node)
            run.wait_step(1)
        with self._voice.timed(f"step {step} reached, snapshots appear"):
            run.wait_step(step)
            run.wait_status("has seen the snapshot of step 20", lambda s: s.get("latest", {}).get("step", 0) >= 20)
        self._show(run, "get", "ckpt,ckptsnap")

    def _drain(self, run: TrainingRun) -> tuple[int, tuple[str, str], float]:
        """(last step of the evicted pod, its node and the next one, seconds from the drain to the next step)."""
        evicted = run.followers[-1]
        node = run.node_of(evicted.pod)
        self._voice.remark(f"pod {evicted.pod} is at step {evicted.last_step} on {node}; draining {node}")
        began = dt.datetime.now(dt.UTC)
        with self._voice.timed(f"kubectl drain {node}: the pod saved on SIGTERM and left"):
            self._cluster.kubectl(
                "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s"
            )
        evicted.finish()
        with self._voice.timed("the replacement pod made its first step"):
            replacement = run.follow_next_pod()
            first = wait_for(
                "the first step after the eviction",
                replacement.first_step,
                timeout=120,
                context=lambda: f"{replacement.tail()}\n{run.describe()}",
            )
        next_node = run.node_of(replacement.pod)
        self._voice.remark(f"pod {replacement.pod} on {next_node} continues with: {first.text}")
        self._cluster.kubectl("uncordon", node)
        return evicted.last_step, (node, next_node), (first.time - began).total_seconds()

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

    def _compare(self, run: TrainingRun, undisturbed: TrainingRun) -> comparison.Comparison:
        with self._voice.timed("the same training, undisturbed, in one go"):
            self._apply(undisturbed)
            self._start(undisturbed, pause_seconds=0.0)
            undisturbed.wait_finished()
        with self._voice.timed("both final snapshots read by stock torch.distributed.checkpoint and compared"):
            options = self._cluster.object_store.storage_options()
            left, right = (comparison.read_step(self.url(r), STEPS, **options) for r in (run, undisturbed))
            compared = comparison.compare(left, right)
        verdict = "bit-identical" if compared.identical else f"DIFFERENT in {', '.join(compared.differing)}"
        self._voice.remark(f"{compared.tensors} tensors of parameters and optimizer state: {verdict}")
        return compared

    def _show(self, run: TrainingRun, *arguments: str) -> None:
        self._voice.command(f"kubectl {' '.join(arguments)}", run.kubectl(*arguments))
