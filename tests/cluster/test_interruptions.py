"""A job loses its pod in several ways, on real kubelets, and ends where an undisturbed one ends, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import fsspec
import pytest

from cluster.conftest import STEPS, Start
from cluster.interrupting import cordoned, drain, kill_rank, reasons, requested_save
from demo import comparison, installation
from demo.training import TrainingRun, wait_for
from localcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

ReadState = Callable[[TrainingRun], comparison.State]


def assert_finished_like(undisturbed: comparison.State, run: TrainingRun, final_state: ReadState) -> None:
    run.wait_finished()
    compared = comparison.compare(final_state(run), undisturbed)
    assert compared.identical, compared.differing
    assert compared.tensors > 100  # parameters and two moments of each, not just a few


def test_a_drained_job_continues_on_the_other_node_at_the_step_it_was_drained_at(
    operator: Cluster, start: Start, undisturbed: comparison.State, final_state: ReadState
) -> None:
    run = start("drained")
    run.wait_step(15)
    evicted = run.followers[-1]
    node = run.node_of(evicted.pod)
    drain(operator, node)
    try:
        evicted.finish()
        replacement = run.follow_next_pod()
        assert run.node_of(replacement.pod) != node
        first = wait_for("a step", replacement.first_step, timeout=120, context=replacement.tail)
    finally:
        operator.kubectl("uncordon", node)

    assert first.step == evicted.last_step + 1, "the save on SIGTERM lost nothing"
    assert_finished_like(undisturbed, run, final_state)

    status = run.wait_status("reflects the last step", lambda s: s.get("latest", {}).get("step") == STEPS)
    restore = status["lastRestore"]
    assert (restore["step"], restore["reason"], restore["lostSteps"]) == (evicted.last_step, "Latest", 0)
    assert status["attempt"]["number"] == 2
    story = reasons(run)
    told = ["SnapshotCommitted", "PodEvicted", "AttemptStarted", "Restored"]
    positions = [
        story.index("SnapshotCommitted"),
        story.index("PodEvicted"),
        *(len(story) - 1 - story[::-1].index(reason) for reason in ("AttemptStarted", "Restored")),
    ]
    assert positions == sorted(positions), f"{told} are reported in order: {story}"


@pytest.mark.evictions
def test_a_cordon_is_followed_by_a_save_before_anything_is_evicted(operator: Cluster, start: Start) -> None:
    run = start("cordoned", save={"everySteps": 1000})
    run.wait_step(5)
    pod = run.followers[-1].pod
    with cordoned(operator, node := run.node_of(pod)):
        assert requested_save(run) >= 5
        assert run.status["attempt"]["notice"] == f"Node {node} is cordoned."
        assert "deletionTimestamp" not in run.get("pod", pod)["metadata"]
    story = reasons(run)
    assert story.count("SaveRequested") == 1
    assert "PodEvicted" not in story


@pytest.mark.evictions
def test_a_job_whose_rank_is_killed_restores_the_last_commit_and_reports_what_was_lost(
    start: Start, undisturbed: comparison.State, final_state: ReadState
) -> None:
    run = start("killed")
    run.wait_step(15)
    run.wait_status("has seen step 10", lambda s: s.get("latest", {}).get("step", 0) >= 10)
    kill_rank(run)
    killed = run.followers[-1]
    killed.finish(timeout=60)
    replacement = run.follow_next_pod()
    first = wait_for("a step", replacement.first_step, timeout=120, context=replacement.tail)

    assert first.step is not None
    restored = first.step - 1
    assert restored > 0, "never silently from the beginning"
    assert restored % 10 == 0, "nothing but a scheduled save can have committed"
    assert restored <= killed.last_step
    assert_finished_like(undisturbed, run, final_state)
    status = run.wait_status("reflects the last step", lambda s: s.get("latest", {}).get("step") == STEPS)
    assert status["lastRestore"]["step"] == restored
    assert status["lastRestore"]["lostSteps"] >= 0
    assert "RestoreFailed" not in reasons(run)


def test_a_job_is_evicted_and_continues_while_the_operator_is_down_and_status_and_retention_catch_up(
    operator: Cluster, start: Start, bucket_of_runs: str, undisturbed: comparison.State, final_state: ReadState
) -> None:
    run = start("alone", save={"everySteps": 5}, retention={"keepLast": 2, "gracePeriod": "5s"})
    run.wait_step(5)
    with installation.stopped(operator):
        before = run.status.get("logSequence")
        run.wait_step(12)
        evicted = run.followers[-1]
        node = run.node_of(evicted.pod)
        drain(operator, node)
        try:
            evicted.finish()
            replacement = run.follow_next_pod()
            first = wait_for("a step", replacement.first_step, timeout=120, context=replacement.tail)
        finally:
            operator.kubectl("uncordon", node)
        assert first.step == evicted.last_step + 1
        run.wait_finished()
        assert run.status.get("logSequence") == before, "no operator was there to write it"
    assert_finished_like(undisturbed, run, final_state)
    status = run.wait_status("caught up", lambda s: s.get("latest", {}).get("step") == STEPS, timeout=90)
    assert status["attempt"]["number"] == 2
    assert status["lastRestore"]["step"] == evicted.last_step
    wait_for(
        "two snapshots to be left",
        lambda: [item["spec"]["step"] for item in run.snapshots] == [STEPS - 5, STEPS],
        timeout=90,
        context=lambda: f"{run.describe()}\n{installation.logs(operator)}",
    )
    files = fsspec.filesystem("s3", **operator.object_store.storage_options(), skip_instance_cache=True)
    data = files.glob(f"{bucket_of_runs}/{run.name}/**/*.distcp")
    steps = {int(path.split("/step-")[1].split("/")[0]) for path in data}
    assert steps == {STEPS - 5, STEPS}, "what was purged is gone from the bucket, what is kept is there"
    assert {"SnapshotRetired", "SnapshotPurged"} <= set(reasons(run))
