"""The operator as users meet it: a real process, a real API server, real stores."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest

from checkpoint_sidecar.core.log import Owner, PodIdentity
from checkpoint_sidecar.core.run import SnapshotState
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from localcluster import network
from support.admission import Namespace, pod
from support.operators import FILES, UNREAD, StartOperator, create
from support.trainers import Trainer

pytestmark = pytest.mark.api

CHART = Path(__file__).parents[2] / "charts" / "checkpoint-operator"


def test_a_new_checkpoint_is_claimed_configured_and_ready(
    namespace: Namespace, start_operator: StartOperator, url: str
) -> None:
    start_operator(FILES)
    run = create(namespace, url, save={"everySteps": 10})
    run.becomes("Ready", "True", "Configured")
    assert run.status["claimedBy"] == f"{namespace.api.uid}/{namespace.name}/run"
    log = Trainer(LocalStore(StoreSettings(url)), Owner(namespace.api.uid, namespace.name, "run")).run
    assert log.policy.save.every_steps == 10
    namespace.patch("checkpoints", "run", {"spec": {"save": {"everySteps": 20}}})
    run.eventually(lambda it: it.status["observedGeneration"] == it.body["metadata"]["generation"] == 2)


def test_a_commit_shows_within_ten_seconds_with_one_write_of_the_status(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    start_operator(FILES, UNREAD)
    run = create(namespace, url)
    run.becomes("Ready", "True", "Configured")
    trainer.start()
    run.eventually(lambda it: it.status.get("attempt", {}).get("number") == 1, within=10)
    before = run.body["metadata"]["resourceVersion"]
    watch = namespace.api.kubectl_process(
        f"--namespace={namespace.name}", "get", "ckpt", "run", "--watch", "--output=name"
    )
    snapshot = trainer.commit(100)
    run.eventually(lambda it: it.status.get("latest", {}).get("snapshot") == snapshot.id, within=10)
    mirror = f"run-{snapshot.id}"
    run.eventually(lambda it: "Verified" in str(it.snapshots().get(mirror, {}).get("status")))
    time.sleep(6)
    watch.terminate()
    changes = watch.communicate()[0].splitlines()
    assert run.body["metadata"]["resourceVersion"] != before
    assert changes == ["checkpoint.checkpoint-operator.dev/run"] * 2, "the first line is the state at the start"
    assert run.status["latest"]["bytes"] == snapshot.commit.bytes
    run.eventually(lambda it: it.events() == ["RunClaimed", "AttemptStarted", "SnapshotCommitted"])


def test_what_retention_does_not_keep_is_retired_and_purged_and_the_rest_stays(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    start_operator(FILES)
    run = create(namespace, url, retention={"keepLast": 2, "gracePeriod": "1s"})
    run.becomes("Ready", "True", "Configured")
    trainer.start()
    snapshots = [trainer.commit(step) for step in (100, 200, 300, 400)]
    kept = [s.id for s in snapshots[2:]]
    run.eventually(lambda it: sorted(it.snapshots()) == sorted(f"run-{identifier}" for identifier in kept))
    run.eventually(lambda it: it.status["snapshots"] == 2 and "pendingPurge" not in it.status)
    assert [s.id for s in trainer.run.snapshots.values() if s.state is SnapshotState.LIVE] == kept
    folders = {info.key.rpartition("/")[0] for info in trainer.store.list("step-")}
    assert folders == {path for s in snapshots[2:] for path in (s.commit.path, s.commit.path.split("/")[0])}
    run.tells("SnapshotPurged", times=2)
    assert not trainer.run.snapshots[kept[0]].failures


def test_a_deleted_object_of_a_snapshot_comes_back_and_remembers_that_it_is_held(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    start_operator(FILES)
    run = create(namespace, url)
    snapshot = trainer.start().commit(100)
    name = f"run-{snapshot.id}"
    run.eventually(lambda it: name in it.snapshots())
    namespace.patch("checkpointsnapshots", name, {"spec": {"disposition": "Hold"}})
    run.eventually(lambda _: trainer.run.snapshots[snapshot.id].disposition == "Hold")
    uid = run.snapshots()[name]["metadata"]["uid"]
    namespace.kubectl("delete", "ckptsnap", name)
    again = run.eventually(lambda it: it.snapshots().get(name))
    assert again["metadata"]["uid"] != uid
    assert again["spec"]["disposition"] == "Hold"


def test_retiring_the_newest_verified_snapshot_by_hand_is_refused(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    start_operator(FILES, UNREAD)
    run = create(namespace, url, retention={"keepLast": 1})
    snapshot = trainer.start().commit(100)
    name = f"run-{snapshot.id}"
    run.eventually(lambda it: "SizesMatch" in str(it.snapshots().get(name)))
    namespace.patch("checkpointsnapshots", name, {"spec": {"disposition": "Retire"}})
    run.eventually(lambda it: "RetireRefused" in str(it.snapshots()[name]["status"]["conditions"]))
    assert trainer.run.snapshots[snapshot.id].disposition == "Auto"


def test_a_restart_reports_what_was_restored_and_what_was_lost(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    start_operator(FILES)
    run = create(namespace, url)
    run.becomes("Ready", "True", "Configured")
    snapshot = trainer.start().commit(100)
    run.eventually(lambda it: it.status.get("latest"))
    trainer.report(130)
    time.sleep(11)
    trainer.start()
    run.eventually(lambda it: it.status.get("lastRestore", {}).get("attempt") == 2)
    restore = run.status["lastRestore"]
    assert (restore["snapshot"], restore["step"], restore["reason"]) == (snapshot.id, 100, "Latest")
    assert (restore["attempt"], restore["lostSteps"]) == (2, 30)
    run.eventually(lambda it: it.events()[-2:] == ["AttemptStarted", "Restored"])


def test_an_operator_that_was_killed_is_replaced_and_catches_up(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    first = start_operator(FILES)
    run = create(namespace, url, retention={"keepLast": 1, "gracePeriod": "0s"})
    run.becomes("Ready", "True", "Configured")
    first.kill()
    trainer.start()
    snapshots = [trainer.commit(step) for step in (100, 200, 300)]
    start_operator(FILES)
    run.eventually(lambda it: list(it.snapshots()) == [f"run-{snapshots[-1].id}"])
    run.tells("SnapshotCommitted", times=3)
    run.tells("RunClaimed")


def test_two_operators_at_once_do_everything_once(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    both = [start_operator(FILES), start_operator(FILES)]
    run = create(namespace, url, retention={"keepLast": 1, "gracePeriod": "0s"})
    run.becomes("Ready", "True", "Configured")
    trainer.start()
    snapshots = [trainer.commit(step) for step in (100, 200, 300)]
    run.eventually(lambda it: list(it.snapshots()) == [f"run-{snapshots[-1].id}"])
    time.sleep(5)
    purged = [s.state for s in trainer.run.snapshots.values()]
    assert purged == [SnapshotState.PURGED, SnapshotState.PURGED, SnapshotState.LIVE]
    events = run.events()
    assert {reason: events.count(reason) for reason in ("SnapshotCommitted", "SnapshotRetired", "SnapshotPurged")} == {
        "SnapshotCommitted": 3,
        "SnapshotRetired": 2,
        "SnapshotPurged": 2,
    }
    run.eventually(lambda it: "SecondOperator" in it.events())
    assert [operator.stop() for operator in both] == [0, 0]


def test_an_evicted_pod_is_noticed_in_the_log_and_told(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    start_operator(FILES)
    run = create(namespace, url)
    run.becomes("Ready", "True", "Configured")
    uid = namespace.create(pod("run"))["metadata"]["uid"]
    trainer.start(PodIdentity("trainer", uid))
    run.eventually(lambda it: it.status.get("attempt", {}).get("pods") == ["trainer"])
    disruption = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    namespace.patch("pods", "trainer", {"status": {"conditions": [disruption]}}, status=True)
    run.eventually(lambda it: "PodEvicted" in it.events(), within=10)
    attempt = trainer.run.attempt
    assert attempt is not None
    assert attempt.eviction is not None
    assert attempt.eviction.reason == "EvictionByEvictionAPI"


def test_the_process_answers_probes_and_scrapes_and_ends_when_asked(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    ports = network.free_ports()
    probes, metrics = next(ports), next(ports)
    operator = start_operator(FILES, f"--liveness=http://:{probes}/healthz", f"--metrics=:{metrics}")
    run = create(namespace, url)
    run.becomes("Ready", "True", "Configured")
    trainer.start().commit(100)
    labels = f'{{checkpoint="run",namespace="{namespace.name}"}}'
    run.eventually(lambda _: f"_latest_snapshot_step{labels} 100.0" in _get(f"http://127.0.0.1:{metrics}"))
    assert f"_log_lost_races_total{labels} 0.0" in _get(f"http://127.0.0.1:{metrics}")
    for address in ("127.0.0.1", "[::1]"):
        assert _get(f"http://{address}:{probes}/healthz") == '{"healthy": "ok"}'
        assert "checkpoint_operator_ready" in _get(f"http://{address}:{metrics}/metrics")
    assert operator.stop() == 0


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
        return text


@pytest.mark.parametrize("everywhere", [False, True], ids=["in one namespace", "in all namespaces"])
def test_the_rights_that_the_chart_gives_are_enough(
    namespace: Namespace,
    start_operator: StartOperator,
    url: str,
    trainer: Trainer,
    chart_rights: Path,
    everywhere: bool,
) -> None:
    cluster = f"--cluster-id={namespace.api.uid}"
    operator = start_operator(FILES, cluster, kubeconfig=chart_rights, everywhere=everywhere)
    run = create(namespace, url, retention={"keepLast": 1, "gracePeriod": "0s"})
    run.becomes("Ready", "True", "Configured")
    trainer.start()
    snapshots = [trainer.commit(step) for step in (100, 200)]
    run.eventually(lambda it: list(it.snapshots()) == [f"run-{snapshots[-1].id}"])
    run.eventually(lambda it: "SnapshotPurged" in it.events())
    assert "answered 403" not in operator.logged
    assert "Forbidden" not in operator.logged


@pytest.mark.parametrize("everywhere", [False], ids=["by roles alone"])
def test_several_namespaces_are_served_and_no_other(
    namespace: Namespace, start_operator: StartOperator, tmp_path: Path, chart_rights: Path, everywhere: bool
) -> None:
    api = namespace.api
    served, other = [namespace, Namespace.fresh(api)], Namespace.fresh(api)
    names = ",".join(place.name for place in served)
    upgrade = ("upgrade", namespace.name, str(CHART), f"--namespace={namespace.name}", "--reuse-values")
    api.helm(*upgrade, f"--set=watchNamespaces={{{names}}}")
    options = (FILES, f"--cluster-id={api.uid}", f"--namespace={served[1].name}")
    operator = start_operator(*options, kubeconfig=chart_rights)
    unserved = create(other, f"file://{tmp_path / other.name}")
    for place in served:
        create(place, f"file://{tmp_path / place.name}").becomes("Ready", "True", "Configured")
    assert unserved.status == {}
    assert not (tmp_path / other.name).exists()
    assert "answered 403" not in operator.logged
    assert "Forbidden" not in operator.logged


# What goes wrong


def test_an_older_checkpoint_has_the_overlapping_prefix(
    namespace: Namespace, start_operator: StartOperator, url: str
) -> None:
    start_operator(FILES)
    create(namespace, url, "older").becomes("Ready", "True", "Configured")
    time.sleep(1.1)
    inside = create(namespace, f"{url}/inside", "younger")
    inside.becomes("Ready", "False", "PrefixClaimed")
    inside.becomes("Stalled", "True", "PrefixClaimed")
    inside.eventually(lambda it: it.events() == ["PrefixClaimed"])
    namespace.kubectl("delete", "ckpt", "older")
    inside.becomes("Ready", "True", "Configured")


def test_a_checkpoint_that_was_refused_does_not_keep_others_out_of_prefixes_inside(
    namespace: Namespace, start_operator: StartOperator, url: str
) -> None:
    Trainer(LocalStore(StoreSettings(url)), Owner("another-cluster", "training", "run")).start()
    start_operator(FILES)
    create(namespace, url, "refused").becomes("Ready", "False", "PrefixClaimed")
    time.sleep(1.1)
    create(namespace, f"{url}/inside", "younger").becomes("Ready", "True", "Configured")


def test_a_prefix_of_another_run_is_refused_and_taken_over_on_request(
    namespace: Namespace, start_operator: StartOperator, url: str
) -> None:
    other = Owner("another-cluster", "training", "run")
    Trainer(LocalStore(StoreSettings(url)), other).start().commit(100)
    start_operator(FILES)
    run = create(namespace, url)
    refused = run.becomes("Ready", "False", "PrefixClaimed")
    assert str(other) in refused["message"]
    assert run.status["claimedBy"] == str(other)
    assert run.snapshots() == {}
    namespace.patch("checkpoints", "run", {"spec": {"storage": {"takeOverFrom": str(other)}}})
    run.becomes("Ready", "True", "Configured")
    run.eventually(lambda it: len(it.snapshots()) == 1)
    run.tells("RunAdopted")


def test_a_wiped_status_is_written_again_at_once(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    start_operator(FILES, UNREAD)
    run = create(namespace, url)
    name = f"run-{trainer.start().commit(100).id}"
    run.eventually(lambda it: "SizesMatch" in str(it.snapshots().get(name)) and it.status.get("latest"))
    wipe = '--patch=[{"op": "remove", "path": "/status"}]'
    for kind, each in (("ckpt", "run"), ("ckptsnap", name)):
        namespace.kubectl("patch", kind, each, "--subresource=status", "--type=json", wipe)
    run.eventually(lambda it: it.status.get("latest") and it.condition("Ready"), within=15)
    run.eventually(lambda it: "SizesMatch" in str(it.snapshots().get(name)), within=15)


def test_what_an_earlier_checkpoint_of_the_name_has_left_is_replaced(
    namespace: Namespace, start_operator: StartOperator, url: str, trainer: Trainer
) -> None:
    start_operator(FILES, UNREAD)
    run = create(namespace, url)
    name = f"run-{trainer.start().commit(100).id}"
    run.eventually(lambda it: name in it.snapshots())
    # What `kubectl delete --cascade=orphan` does, and a backup that brings objects back without their owner.
    namespace.kubectl("delete", "ckpt", "run")
    orphan = '--patch=[{"op": "remove", "path": "/metadata/ownerReferences"}]'
    namespace.kubectl("patch", "ckptsnap", name, "--type=json", orphan)
    create(namespace, url)
    uid = run.body["metadata"]["uid"]
    run.eventually(
        lambda it: (
            [o["uid"] for o in it.snapshots().get(name, {}).get("metadata", {}).get("ownerReferences", ())] == [uid]
        )
    )
    namespace.kubectl("delete", "ckpt", "run")  # here nothing collects what it owned
    create(namespace, f"{url}-elsewhere")
    run.becomes("Ready", "True", "Configured")
    run.eventually(lambda it: it.snapshots() == {})
    assert trainer.run.snapshots, "the other run's log and data are as they were"
