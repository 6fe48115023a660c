"""Which bare pods are created again, which gangs are restarted, and when."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from checkpoint_operator.decide.plan import store_actions
from checkpoint_operator.decide.reschedule import RETRY_SECONDS, next_pass, pod_actions
from checkpoint_operator.gather.bare_pods import BarePods
from checkpoint_operator.model.actions import CreatePod, DeletePod, EvictPod, NoticeEviction
from checkpoint_operator.model.observed import Key, Observed, Pod, RunProgress
from checkpoint_operator.model.pod_body import RECREATED, created_again
from checkpoint_sidecar.core.log import PodIdentity
from support.builders import OTHER_OWNER, POD, History
from support.observations import KEY, changed, later, observed, pod

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
GANG = (POD, PodIdentity("llama-1", "uid-1"), PodIdentity("llama-2", "uid-2"))
GRACE, MARGIN = 60.0, 15.0

# Bare pods


def body_of(
    *,
    reason: str = "EvictionByEvictionAPI",
    phase: str = "Failed",
    uid: str = "uid-0",
    owners: tuple[dict[str, Any], ...] = (),
    minutes_old: float = 60,
    **annotations: str,
) -> dict[str, Any]:
    """A bare pod as the watch shows it; without a reason nothing disrupted it."""
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    return {
        "metadata": {
            "name": "llama",
            "namespace": KEY.namespace,
            "uid": uid,
            "resourceVersion": "7",
            "creationTimestamp": (NOW - dt.timedelta(minutes=minutes_old)).isoformat(),
            "deletionTimestamp": NOW.isoformat(),
            "labels": {"checkpoint-operator.dev/checkpoint": "llama"},
            "annotations": {RECREATED if name == "recreated" else name: value for name, value in annotations.items()},
            "managedFields": [{"manager": "kubectl"}],
            "ownerReferences": list(owners),
            "finalizers": ["example.com/keep"],
        },
        "spec": {
            "containers": [
                {
                    "name": "train",
                    "image": "i",
                    "env": [{"name": "CHECKPOINT_URL", "value": "s3://bucket/run"}],
                    "volumeMounts": [
                        {"name": "data", "mountPath": "/data"},
                        {"name": "kube-api-access-x7k2q", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
                    ],
                }
            ],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "kube-api-access-x7k2q", "projected": {}}],
            "nodeName": "node-a",
            "priority": 0,
            "preemptionPolicy": "PreemptLowerPriority",
            "restartPolicy": "Never",
        },
        "status": {"phase": phase, "conditions": [condition] if reason else []},
    }


def wanting(pods: BarePods, *listed: Pod, wanted: bool = True, after_seconds: float = 0) -> Observed:
    """What a pass sees some time after the watch showed what it showed."""
    seen = observed(History().configured().started(), reschedule={"recreateBarePods": wanted})
    wall = NOW + dt.timedelta(seconds=after_seconds)
    return changed(seen, wall=wall, pods=listed, disrupted=pods.of(KEY))


def after(*bodies: dict[str, Any]) -> BarePods:
    pods = BarePods()
    for body in bodies:
        pods.show(KEY, body, now=NOW)
    return pods


@pytest.mark.parametrize(
    "reason",
    [
        "EvictionByEvictionAPI",
        "DeletionByTaintManager",
        "PreemptionByScheduler",
        "DeletionByPodGC",
        "TerminationByKubelet",
    ],
)
def test_a_bare_pod_that_a_disruption_ended_is_created_again_when_its_name_is_free(reason: str) -> None:
    (action,) = pod_actions(wanting(after(body_of(reason=reason))))
    assert isinstance(action, CreatePod)
    assert (action.name, action.uid, action.reason) == ("llama", "uid-0", reason)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body_of(reason=""), id="deleted-by-a-user"),
        pytest.param(body_of(phase="Succeeded"), id="that-was-done"),
        pytest.param(body_of(owners=({"kind": "Job", "controller": True},)), id="with-a-controller"),
    ],
)
def test_no_other_pod_is(body: dict[str, Any]) -> None:
    assert pod_actions(wanting(after(body))) == ()


def test_an_owner_that_is_no_controller_creates_no_pods() -> None:
    assert len(pod_actions(wanting(after(body_of(owners=({"kind": "Checkpoint"},)))))) == 1


def test_without_the_users_wish_nothing_is_created() -> None:
    assert pod_actions(wanting(after(body_of()), wanted=False)) == ()


def deleted(seen: Observed) -> Observed:
    return replace(seen, checkpoint=replace(seen.checkpoint, deleted_at=NOW))


def test_a_checkpoint_that_is_being_deleted_gets_no_pods() -> None:
    assert pod_actions(deleted(wanting(after(body_of())))) == ()


def test_what_the_kubelet_left_of_an_evicted_pod_is_deleted_first() -> None:
    left = pod("llama", "uid-0", phase="Failed", leaving="TerminationByKubelet")
    assert pod_actions(wanting(after(body_of(reason="TerminationByKubelet")), left)) == (DeletePod("llama", "uid-0"),)


@pytest.mark.parametrize(
    "there",
    [
        pytest.param(pod("llama", "uid-0", leaving="EvictionByEvictionAPI"), id="still-saving"),
        pytest.param(pod("llama", "another-uid"), id="applied-by-a-user"),
        pytest.param(pod("llama", "another-uid", phase="Failed"), id="applied-and-failed"),
    ],
)
def test_a_name_that_is_taken_is_left_alone(there: Pod) -> None:
    assert pod_actions(wanting(after(body_of()), there)) == ()


@pytest.mark.parametrize(
    "follows",
    [
        pytest.param(body_of(reason="", phase="Pending", uid="another-uid"), id="it-is-there-again"),
        pytest.param(body_of(phase="Succeeded"), id="it-ended-well-after-all"),
    ],
)
def test_the_watch_may_tell_that_nothing_is_to_be_done_any_more(follows: dict[str, Any]) -> None:
    assert after(body_of(phase="Running"), follows).of(KEY) == ()


def test_the_new_pod_is_what_was_submitted() -> None:
    body = body_of(team="ml")
    again = created_again(body, failures=0)
    assert again == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "llama",
            "namespace": KEY.namespace,
            "labels": {"checkpoint-operator.dev/checkpoint": "llama"},
            "annotations": {"team": "ml", RECREATED: "1"},
        },
        "spec": {
            "containers": [
                {
                    "name": "train",
                    "image": "i",
                    "env": [{"name": "CHECKPOINT_URL", "value": "s3://bucket/run"}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "restartPolicy": "Never",
        },
    }
    assert body == body_of(team="ml"), "what was watched stays as it was"


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        pytest.param(body_of(minutes_old=1), 0, id="first"),
        pytest.param(body_of(minutes_old=1, recreated="1"), 10, id="second"),
        pytest.param(body_of(minutes_old=1, recreated="3"), 40, id="fourth"),
        pytest.param(body_of(minutes_old=1, recreated="999"), 300, id="never-longer"),
        pytest.param(body_of(minutes_old=11, recreated="3"), 0, id="it-lived-long"),
        pytest.param(body_of(minutes_old=1, recreated="a lot"), 0, id="nonsense"),
    ],
)
def test_a_pod_that_does_not_live_is_created_again_after_longer_and_longer_waits(
    body: dict[str, Any], seconds: float
) -> None:
    pods = after(body)
    if seconds:
        early = wanting(pods, after_seconds=seconds - 1)
        assert (pod_actions(early), next_pass(early)) == ((), 1)
    (action,) = pod_actions(wanting(pods, after_seconds=seconds))
    assert isinstance(action, CreatePod)


def test_what_could_not_be_created_is_tried_again_later() -> None:
    pods = after(body_of())
    pods.postpone(KEY, "llama", now=NOW)
    assert pod_actions(wanting(pods, after_seconds=9)) == ()
    assert len(pod_actions(wanting(pods, after_seconds=10))) == 1
    pods.settle(KEY, "llama")
    assert pods.of(KEY) == ()


def test_pods_are_remembered_by_checkpoint_and_forgotten_with_it() -> None:
    pods = after(body_of())
    assert pods.of(Key(KEY.namespace, "other")) == ()
    pods.forget(KEY)
    assert pods.of(KEY) == ()


# Gangs


def rank(number: int, **changes: Any) -> Pod:
    started: Any = {"grace_seconds": GRACE, **changes}
    return replace(pod(GANG[number].name, GANG[number].uid), **started)


def gang(*pods: Pod, history: History | None = None, wanted: bool = True) -> Observed:
    """A gang whose first pod is being evicted, right after that was noticed."""
    seen = history or History().configured().started(pods=GANG).evicted()
    return changed(observed(seen, reschedule={"restartGang": wanted}), pods=pods)


def in_time(seen: Observed) -> Observed:
    return later(seen, seconds=GRACE + MARGIN)


def evicted(seen: Observed) -> list[str]:
    return [action.name for action in pod_actions(seen) if isinstance(action, EvictPod)]


def test_peers_that_hang_are_evicted_once_the_grace_period_of_the_last_save_is_over() -> None:
    seen = gang(rank(1), rank(2))
    early = later(seen, seconds=GRACE + MARGIN - 1)
    assert (pod_actions(early), next_pass(early)) == ((), 1)
    assert pod_actions(in_time(seen)) == (EvictPod("llama-1", "uid-1", 1), EvictPod("llama-2", "uid-2", 1))
    assert next_pass(in_time(seen)) == RETRY_SECONDS, "a PodDisruptionBudget may forbid it"


@pytest.mark.parametrize(
    ("pods", "hanging"),
    [
        pytest.param((rank(0, leaving="Deleted"), rank(1), rank(2)), ["llama-1", "llama-2"], id="all-stay"),
        pytest.param((rank(1, phase="Failed"), rank(2)), ["llama-2"], id="one-gave-up"),
        pytest.param((rank(1, leaving="Deleted"), rank(2)), ["llama-2"], id="one-leaves"),
        pytest.param((rank(1, leaving="Deleted"), rank(2, leaving="Deleted")), [], id="all-leave"),
        pytest.param((rank(1, phase="Succeeded"), rank(2, phase="Failed")), [], id="all-ended"),
        pytest.param((), [], id="all-are-gone"),
        pytest.param((rank(0), rank(1), rank(2)), [], id="no-pod-left-after-all"),
        pytest.param((pod("new-0", "n-0"), pod("new-1", "n-1")), [], id="replaced"),
    ],
)
def test_only_those_that_stay_hang(pods: tuple[Pod, ...], hanging: list[str]) -> None:
    assert evicted(in_time(gang(*pods))) == hanging


def test_a_container_that_was_restarted_in_its_pod_waits_and_does_not_hang() -> None:
    noticed_at = gang().run.attempt.eviction_at  # type: ignore[union-attr]
    assert noticed_at is not None
    before, since = (noticed_at + dt.timedelta(seconds=each) for each in (-60, 1))
    assert evicted(in_time(gang(rank(1, running_since=before), rank(2, running_since=since)))) == ["llama-1"]


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(History().configured().started(pods=GANG), id="no-pod-was-evicted"),
        pytest.param(History().configured().started(pods=GANG).evicted().started(), id="the-next-attempt-runs"),
        pytest.param(History().configured().started(pods=GANG).evicted().fenced(), id="it-is-fenced"),
        pytest.param(History().configured().started(pods=GANG[:1]).evicted(), id="it-is-no-gang"),
        pytest.param(
            History().configured().started(pods=GANG).evicted().adopted(OTHER_OWNER), id="the-run-is-not-ours"
        ),
    ],
)
def test_a_gang_is_left_alone(history: History) -> None:
    assert pod_actions(in_time(gang(rank(1), rank(2), history=history))) == ()


def test_a_gang_is_left_alone_without_the_users_wish() -> None:
    assert pod_actions(in_time(gang(rank(1), rank(2), wanted=False))) == ()


def test_a_gang_of_a_checkpoint_that_is_being_deleted_is_left_alone() -> None:
    assert pod_actions(deleted(in_time(gang(rank(1), rank(2))))) == ()


def test_a_gang_that_said_goodbye_is_left_alone() -> None:
    seen = in_time(gang(rank(1), rank(2)))
    assert seen.now is not None
    goodbye = RunProgress(1, 100, seen.now, ended=True)
    assert pod_actions(changed(seen, progress={1: goodbye})) == ()


def test_a_log_that_cannot_be_read_restarts_no_pod() -> None:
    assert pod_actions(replace(in_time(gang(rank(1), rank(2))), run=None)) == ()


# Which pods an attempt has lost


def noticed(*pods: Pod) -> list[tuple[str, str]]:
    seen = changed(observed(History().configured().started(pods=GANG)), pods=pods)
    planned = (action for action in store_actions(seen) if isinstance(action, NoticeEviction))
    return [(action.pod.name, action.reason) for action in planned]


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        pytest.param((rank(0), rank(1), rank(2)), [], id="all-are-there"),
        pytest.param((rank(0), rank(1)), [("llama-2", "Gone")], id="one-is-gone"),
        pytest.param((rank(0, phase="Succeeded"), rank(1, phase="Succeeded")), [], id="the-last-are-cleaned-up"),
        pytest.param((), [], id="all-are-gone"),
        pytest.param((rank(0), rank(1, leaving="Deleted")), [("llama-1", "Deleted")], id="one-leaves-one-is-gone"),
    ],
)
def test_a_pod_that_is_gone_while_others_train_is_noticed(
    pods: tuple[Pod, ...], expected: list[tuple[str, str]]
) -> None:
    assert noticed(*pods) == expected
