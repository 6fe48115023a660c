"""Labelled pods receive their identity: from admission policies that a real API server compiles and runs, and from the
webhook, a real process that a real API server asks. Both do the same."""

from __future__ import annotations

import itertools
import json
import operator
import re
from functools import partial
from typing import Any

import pytest

from checkpoint_sidecar.core import environment
from checkpoint_sidecar.core.environment import RunEnvironment
from checkpoint_sidecar.core.log import Owner, PodIdentity
from localcluster.client import ApiServer
from support.admission import Body, Namespace, checkpoint, eventually, pod

pytestmark = pytest.mark.api

INJECTED = {
    environment.RUN,
    environment.URL,
    environment.ADDRESSING_STYLE,
    environment.GRACE_SECONDS,
    environment.ELASTIC_SHUTDOWN_TIMEOUT,
    environment.POD_NAME,
    environment.POD_UID,
}
VOLUME = {
    "name": "checkpoint-operator-credentials",
    "secret": {"secretName": "keys", "defaultMode": 0o644},
}
MOUNT = {"name": "checkpoint-operator-credentials", "mountPath": environment.CREDENTIALS_MOUNT, "readOnly": True}


@pytest.fixture(params=["policies", "webhook_chart"], ids=["Policy", "Webhook"])
def served(request: pytest.FixtureRequest) -> Namespace:
    """A fresh namespace on a server that injects, in each of the two ways."""
    return Namespace.fresh(request.getfixturevalue(request.param))


def variables(container: Body) -> dict[str, str]:
    """Values of the environment; of the downward API, the path of the field."""
    return {
        entry["name"]: entry["value"] if "value" in entry else entry["valueFrom"]["fieldRef"]["fieldPath"]
        for entry in container.get("env", ())
    }


def has_environment(container: Body) -> bool:
    return variables(container).keys() >= INJECTED


def test_a_labelled_pod_learns_its_identity(served: Namespace) -> None:
    served.create(checkpoint())
    (container,) = served.admitted(pod(terminationGracePeriodSeconds=120))["containers"]
    assert variables(container) == {
        "CHECKPOINT_RUN": f"{served.api.uid}/{served.name}/run",
        "CHECKPOINT_URL": "s3://bucket/run",
        "CHECKPOINT_ADDRESSING_STYLE": "Auto",
        "CHECKPOINT_GRACE_SECONDS": "120",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "115",
        "CHECKPOINT_POD_NAME": "metadata.name",
        "CHECKPOINT_POD_UID": "metadata.uid",
    }


def test_the_library_reads_what_is_injected(served: Namespace) -> None:
    storage = EVERYTHING | {"tags": {"team": "a b", "cost": "x=1"}}
    served.create(checkpoint(storage=storage))
    (container,) = served.admitted(pod())["containers"]
    downward = {environment.POD_NAME: "trainer", environment.POD_UID: "8a1"}
    assert RunEnvironment.parse(variables(container) | downward) == RunEnvironment(
        owner=Owner(served.api.uid, served.name, "run"),
        url="s3://bucket/run",
        endpoint="https://s3.internal:9000",
        region="eu-west-1",
        addressing_style="Path",
        credentials_folder=environment.CREDENTIALS_MOUNT,
        server_side_encryption="aws:kms",
        kms_key_id="alias/training",
        requester_pays=True,
        tags=(("cost", "x=1"), ("team", "a b")),
        pod=PodIdentity("trainer", "8a1"),
        grace_seconds=30.0,
    )


def test_the_secret_is_mounted_in_every_container(served: Namespace) -> None:
    served.create(checkpoint(storage={"url": "s3://bucket/run", "credentialsSecret": {"name": "keys"}}))
    data = {"name": "data", "mountPath": "/data"}
    containers = [{"name": "a", "image": "i"}, {"name": "b", "image": "i", "volumeMounts": [data]}]
    spec = served.admitted(pod(volumes=[{"name": "data", "emptyDir": {}}], containers=containers))
    assert spec["volumes"] == [{"name": "data", "emptyDir": {}}, VOLUME]
    assert [container["volumeMounts"] for container in spec["containers"]] == [[MOUNT], [data, MOUNT]]


def test_without_a_secret_nothing_is_mounted(served: Namespace) -> None:
    served.create(checkpoint())
    spec = served.admitted(pod())
    assert "volumes" not in spec
    assert "volumeMounts" not in spec["containers"][0]
    assert environment.CREDENTIALS_FOLDER not in variables(spec["containers"][0])


def test_each_pod_gets_the_checkpoint_of_its_label(served: Namespace) -> None:
    for name in ("one", "two", "three"):
        served.create(checkpoint(name, storage={"url": f"s3://bucket/{name}"}))
    for name in ("one", "two", "three"):
        (container,) = served.admitted(pod(name))["containers"]
        assert variables(container)["CHECKPOINT_URL"] == f"s3://bucket/{name}"


def test_init_containers_are_left_alone_unless_the_annotation_lists_them(served: Namespace) -> None:
    served.create(checkpoint())
    init = [{"name": "prepare", "image": "i"}, {"name": "sync", "image": "i", "restartPolicy": "Always"}]
    spec = served.admitted(pod(initContainers=init))
    assert [has_environment(one) for one in spec["initContainers"]] == [False, False]
    assert has_environment(spec["containers"][0])
    spec = served.admitted(pod(annotation="main, sync", initContainers=init))
    assert [has_environment(one) for one in spec["initContainers"]] == [False, True]
    assert has_environment(spec["containers"][0])


def test_the_annotation_chooses_containers(served: Namespace) -> None:
    served.create(checkpoint())
    both = [{"name": "main", "image": "i"}, {"name": "proxy", "image": "i"}]
    spec = served.admitted(pod(annotation="main", containers=both))
    assert [has_environment(one) for one in spec["containers"]] == [True, False]


def test_what_the_pod_brings_along_stays(served: Namespace) -> None:
    served.create(checkpoint())
    own = [{"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": "10"}, {"name": "LR", "value": "0.1"}]
    body = pod(containers=[{"name": "main", "image": "i", "env": own}])
    (container,) = served.admitted(body)["containers"]
    assert container["env"][-2:] == own
    assert len(variables(container)) == len(container["env"]) == len(INJECTED) + 1


def test_what_is_injected_comes_first_so_that_the_pod_may_refer_to_it(served: Namespace) -> None:
    """The kubelet replaces $(NAME) only by variables that stand before, so nothing of the pod's gets into ours."""
    served.create(checkpoint())
    own = [{"name": "SECRET", "value": "s"}, {"name": "OUTPUT", "value": "$(CHECKPOINT_URL)/tensorboard"}]
    (container,) = served.admitted(pod(containers=[{"name": "main", "image": "i", "env": own}]))["containers"]
    assert container["env"][-2:] == own
    assert {entry["name"] for entry in container["env"][:-2]} == INJECTED


def test_a_dollar_sign_that_is_already_stored_is_not_expanded(served: Namespace) -> None:
    """As in an object from before the schema refused it."""
    crd = "checkpoints.checkpoint-operator.dev"
    rules = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/storage/properties/endpoint"
    path = f"{rules}/x-kubernetes-validations"
    strict = json.loads(served.api.kubectl("get", "crd", crd, "--output=json"))
    for part in path.strip("/").split("/"):
        strict = strict[int(part)] if isinstance(strict, list) else strict[part]

    def patch(operation: Body) -> None:
        served.api.kubectl("patch", "crd", crd, "--type=json", f"--patch={json.dumps([operation])}")

    body = checkpoint(storage={"url": "s3://bucket/run", "endpoint": "https://$(AWS_SECRET_ACCESS_KEY).example.com"})
    patch({"op": "remove", "path": path})
    try:
        eventually(lambda: served.refusal(body), lambda refusal: refusal == "")
        served.create(body)
    finally:
        patch({"op": "add", "path": path, "value": strict})
    eventually(lambda: served.refusal({**body, "metadata": {"name": "other"}}), bool)
    (container,) = served.admitted(pod())["containers"]
    assert variables(container)[environment.ENDPOINT] == "https://$$(AWS_SECRET_ACCESS_KEY).example.com"


@pytest.mark.parametrize(("grace", "timeout"), [(0, "1"), (3, "1"), (6, "1"), (7, "2"), (30, "25")])
def test_torchrun_stops_a_little_before_the_grace_period_ends(served: Namespace, grace: int, timeout: str) -> None:
    served.create(checkpoint())
    (container,) = served.admitted(pod(terminationGracePeriodSeconds=grace))["containers"]
    assert variables(container)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == timeout


SIDECAR_INJECTOR = """
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: adds-a-sidecar}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
    objectSelector: {matchLabels: {test/sidecar: "yes"}}
  matchConditions:
    - name: only-once
      expression: "!object.spec.containers.exists(one, one.name == 'late')"
    - name: only-after-the-injection
      expression: "object.spec.containers.exists(one, has(one.env))"
  failurePolicy: Fail
  reinvocationPolicy: IfNeeded
  mutations:
    - patchType: JSONPatch
      jsonPatch:
        expression: >-
          [JSONPatch{op: 'add', path: '/spec/containers/-', value: Object.spec.containers{name: 'late', image: 'i'}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: adds-a-sidecar}
spec: {policyName: adds-a-sidecar}
"""


def test_a_container_that_another_policy_adds_is_injected_too(policies: ApiServer) -> None:
    """The API server runs policies in an order that it draws anew whenever one changes; when the other one comes last,
    ours runs again on the result. For the webhook, see test_webhook.py."""
    served = Namespace.fresh(policies)
    served.api.kubectl("apply", "--filename=-", stdin=SIDECAR_INJECTOR)
    served.create(checkpoint(storage={"url": "s3://bucket/run", "credentialsSecret": {"name": "keys"}}))
    body = pod()
    body["metadata"]["labels"]["test/sidecar"] = "yes"
    tries = itertools.count()

    def redrawn() -> Body:
        touch = ("annotate", "--overwrite", "mutatingadmissionpolicybinding", "adds-a-sidecar")
        served.api.kubectl(*touch, f"test/try={next(tries)}")
        return served.admitted(body)

    def both_injected(spec: Body) -> bool:
        return [one["name"] for one in spec["containers"] if has_environment(one)] == ["main", "late"]

    spec = eventually(redrawn, both_injected, timeout_seconds=60)
    assert spec["volumes"] == [VOLUME]
    for container in spec["containers"]:
        assert len(container["env"]) == len(variables(container))
        assert container["volumeMounts"] == [MOUNT]


def test_injecting_twice_is_injecting_once(served: Namespace) -> None:
    served.create(checkpoint(storage={"url": "s3://bucket/run", "credentialsSecret": {"name": "keys"}}))
    once = served.admitted(pod())
    assert once["volumes"] == [VOLUME]
    assert served.admitted(pod(**once)) == once


@pytest.mark.parametrize("others", [(), ("other",)], ids=["no Checkpoint at all", "another Checkpoint"])
def test_a_pod_of_no_checkpoint_is_denied_with_what_to_do(served: Namespace, others: tuple[str, ...]) -> None:
    for name in others:
        served.create(checkpoint(name))
        served.admitted(pod(name))
    refusal = served.denied(pod("missing"))
    assert f'no Checkpoint "missing" in namespace "{served.name}" yet: create it, or correct the label' in refusal


def test_a_checkpoint_of_another_namespace_does_not_count(served: Namespace) -> None:
    served.create(checkpoint("run"))
    served.admitted(pod("run"))
    elsewhere = Namespace.fresh(served.api)
    assert 'no Checkpoint "run"' in elsewhere.denied(pod("run"))


def test_an_annotation_that_names_no_container_is_denied(served: Namespace) -> None:
    served.create(checkpoint())
    served.admitted(pod())
    refusal = served.refusal(pod(annotation="main,tariner"))
    assert 'names "tariner", but the containers of this pod are "main"' in refusal


def test_unlabelled_pods_are_untouched(served: Namespace) -> None:
    served.create(checkpoint())
    served.admitted(pod())
    (container,) = served.create(pod(None), dry_run=True)["spec"]["containers"]
    assert "env" not in container


def test_pods_are_injected_when_created_and_never_after(served: Namespace) -> None:
    served.create(checkpoint())
    served.admitted(pod())
    served.create(pod(None))
    served.kubectl("label", "pod", "trainer", f"{environment.POD_LABEL}=run")
    served.kubectl("label", "pod", "trainer", f"{environment.POD_LABEL}=missing", "--overwrite")


def report(served: Namespace, **warm_start: object) -> None:
    """Write the status as the operator does."""
    generation = served.read("checkpoints", "run")["metadata"]["generation"]
    status = {"observedGeneration": generation, "warmStart": warm_start or None}
    served.patch("checkpoints", "run", {"status": status}, status=True)


def test_a_run_that_begins_at_another_checkpoint_waits_until_the_snapshot_is_known(served: Namespace) -> None:
    served.create(checkpoint(restore={"startFrom": {"checkpoint": "base@best", "part": "model"}}))
    assert "spec.restore.startFrom" in served.denied(pod())
    pending = {
        "state": "Pending",
        "url": "s3://bucket/base",
        "snapshot": "900-1-abcdefg2",
        "step": 900,
        "checkpoint": f"{served.name}/base",
        "part": "model",
        "credentialsSecret": {"name": "base-keys"},
    }
    report(served, **pending)
    spec = served.admitted(pod())
    found = variables(spec["containers"][0])
    assert {name: found[name] for name in found if "START_FROM" in name} == {
        environment.START_FROM: "s3://bucket/base@900-1-abcdefg2",
        environment.START_FROM_PART: "model",
        environment.START_FROM_CREDENTIALS_FOLDER: environment.START_FROM_CREDENTIALS_MOUNT,
    }
    assert [volume["secret"]["secretName"] for volume in spec["volumes"]] == ["base-keys"]
    assert [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]] == [
        environment.START_FROM_CREDENTIALS_MOUNT
    ]
    served.patch("checkpoints", "run", {"spec": {"restore": {"startFrom": {"checkpoint": "base@latest"}}}})
    assert "spec.restore.startFrom" in served.denied(pod())
    report(served, **pending | {"state": "Used"})
    spec = served.admitted(pod())
    assert not [name for name in variables(spec["containers"][0]) if "START_FROM" in name]
    assert "volumes" not in spec, "a Secret that is deleted later must not keep pods from starting"


def test_a_run_that_begins_at_a_url_gets_it_with_both_secrets(served: Namespace) -> None:
    start = {"url": "s3://other/base@best", "endpoint": "https://s3.other", "credentialsSecret": {"name": "base-keys"}}
    storage = {"url": "s3://bucket/run", "credentialsSecret": {"name": "keys"}}
    served.create(checkpoint(storage=storage, restore={"startFrom": start}))
    spec = served.admitted(pod())
    downward = {environment.POD_NAME: "trainer", environment.POD_UID: "8a1"}
    found = RunEnvironment.parse(variables(spec["containers"][0]) | downward)
    assert (found.start_from, found.start_from_endpoint) == ("s3://other/base@best", "https://s3.other")
    assert found.start_from_credentials_folder == environment.START_FROM_CREDENTIALS_MOUNT
    assert [volume["secret"]["secretName"] for volume in spec["volumes"]] == ["keys", "base-keys"]
    assert spec["containers"][0]["volumeMounts"][0] == MOUNT
    assert len(spec["containers"][0]["volumeMounts"]) == 2


EVERYTHING = {
    "url": "s3://bucket/run",
    "endpoint": "https://s3.internal:9000",
    "region": "eu-west-1",
    "addressingStyle": "Path",
    "credentialsSecret": {"name": "keys"},
    "serverSideEncryption": "aws:kms",
    "kmsKeyId": "alias/training",
    "requesterPays": True,
    "tags": {"cost": "x=1"},
}
SECRETS = {"url": "s3://bucket/run", "credentialsSecret": {"name": "keys"}}
ELSEWHERE = {"url": "s3://other/base@best", "endpoint": "https://s3.other", "region": "r", "addressingStyle": "Virtual"}
KNOWN = {"state": "Pending", "url": "s3://b/base", "snapshot": "900-1-abcdefg2", "step": 900, "checkpoint": "n/base"}
PLAIN = {"url": "s3://bucket/run"}
TWO = [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]
INIT = [{"name": "prepare", "image": "i"}, {"name": "sync", "image": "i", "restartPolicy": "Always"}]
OWN = {
    "name": "main",
    "image": "i",
    "env": [
        {"name": "CHECKPOINT_REGION", "value": "mine"},
        {"name": "OUTPUT", "value": "$(CHECKPOINT_URL)/logs"},
        {"name": "CHECKPOINT_POD_NAME", "value": "mine"},
    ],
    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
}
MOUNTED = {**OWN, "volumeMounts": [{"name": "data", "mountPath": environment.CREDENTIALS_MOUNT}]}
DATA = [{"name": "data", "emptyDir": {}}]
NAMED_ALIKE = [{"name": "checkpoint-operator-credentials", "emptyDir": {}}]
FRESH = {"restore": {"onMissing": "StartFresh"}}
FROM = {"restore": {"startFrom": {"checkpoint": "base@best", "part": "model"}}}

TABLE: dict[str, tuple[Body, Body, Body]] = {
    # What it is: the Checkpoint's spec, its status, the pod.
    "the least": ({"storage": PLAIN}, {}, pod()),
    "every setting": ({"storage": EVERYTHING}, {"logSequence": 57}, pod(terminationGracePeriodSeconds=120)),
    "no grace": ({"storage": PLAIN}, {"logSequence": 0}, pod(terminationGracePeriodSeconds=0)),
    "little grace": ({"storage": PLAIN}, {}, pod(terminationGracePeriodSeconds=6)),
    "a floor that is given up": ({"storage": PLAIN, **FRESH}, {"logSequence": 57}, pod()),
    "two containers and a Secret": ({"storage": SECRETS}, {}, pod(containers=TWO)),
    "one of two containers": ({"storage": SECRETS}, {}, pod(annotation="b", containers=TWO)),
    "init containers": ({"storage": SECRETS}, {}, pod(initContainers=INIT)),
    "an init container by name": ({"storage": SECRETS}, {}, pod(annotation=" main,sync ", initContainers=INIT)),
    "only an init container": ({"storage": SECRETS}, {}, pod(annotation="sync", initContainers=INIT)),
    "variables and mounts of its own": ({"storage": EVERYTHING}, {}, pod(containers=[OWN], volumes=DATA)),
    "a mount at that place": ({"storage": SECRETS}, {}, pod(containers=[MOUNTED], volumes=DATA)),
    "a volume of that name": ({"storage": SECRETS}, {}, pod(volumes=NAMED_ALIKE)),
    "a beginning elsewhere": ({"storage": PLAIN, "restore": {"startFrom": {"url": "s3://other/base@7"}}}, {}, pod()),
    "a beginning with a Secret": (
        {"storage": SECRETS, "restore": {"startFrom": {**ELSEWHERE, "credentialsSecret": {"name": "base-keys"}}}},
        {},
        pod(containers=[OWN], volumes=DATA),
    ),
    "a beginning in use": (
        {"storage": PLAIN, "restore": {"startFrom": {"url": "s3://other/base"}}},
        {"warmStart": {**KNOWN, "state": "Used"}},
        pod(),
    ),
    "a beginning that is known": ({"storage": SECRETS, **FROM}, {"observedGeneration": 1, "warmStart": KNOWN}, pod()),
    "a beginning that was known": ({"storage": PLAIN, **FROM}, {"observedGeneration": 0, "warmStart": KNOWN}, pod()),
    "a beginning with its own access": (
        {"storage": PLAIN, **FROM},
        {"observedGeneration": 1, "warmStart": KNOWN | {"part": "model", "credentialsSecret": {"name": "base-keys"}}},
        pod(),
    ),
    "a beginning that is unknown": ({"storage": PLAIN, **FROM}, {}, pod()),
    "a beginning that was used": (
        {"storage": PLAIN, **FROM},
        {"observedGeneration": 0, "warmStart": {**KNOWN, "state": "Used"}},
        pod(),
    ),
    "no such Checkpoint": ({"storage": PLAIN}, {}, pod("missing")),
    "a name that no object has": ({"storage": PLAIN}, {}, pod("Not_A_Name")),
    "no such container": ({"storage": PLAIN}, {}, pod(annotation="main,tariner")),
    "no container by an empty annotation": ({"storage": PLAIN}, {}, pod(annotation="")),
    "no such container, no such Checkpoint": ({"storage": PLAIN}, {}, pod("missing", annotation="x, y")),
    "set by hand": (
        {"storage": PLAIN},
        {},
        pod(
            "missing",
            containers=[
                {
                    "name": "main",
                    "image": "i",
                    "env": [
                        {"name": "CHECKPOINT_RUN", "value": "c/n/r"},
                        {"name": "CHECKPOINT_URL", "value": "s3://b"},
                    ],
                }
            ],
        ),
    ),
    "half of it set by hand": (
        {"storage": PLAIN},
        {},
        pod("missing", containers=[{"name": "main", "image": "i", "env": [{"name": "CHECKPOINT_URL", "value": "x"}]}]),
    ),
    "not labelled": ({"storage": PLAIN}, {}, pod(None)),
}
DENIED = {
    "a beginning that was known",
    "a beginning that is unknown",
    "no such Checkpoint",
    "a name that no object has",
    "no such container",
    "no container by an empty annotation",
    "no such container, no such Checkpoint",
    "half of it set by hand",
}


def verdict(place: Namespace, body: Body) -> tuple[str, Any]:
    """What becomes of a pod: its spec, or why it is denied, without what differs between two clusters."""
    status, answer = place.api.send("POST", f"/api/v1/namespaces/{place.name}/pods?dryRun=All", body)
    found = answer["spec"] if status == 201 else re.split(r"denied (?:the )?request: ", answer["message"])[-1]
    told = json.dumps(found).replace(place.api.uid, "<cluster>").replace(place.name, "<namespace>")
    return "admitted" if status == 201 else "denied", json.loads(told)


def prepared(api: ApiServer) -> Namespace:
    """A namespace with the Checkpoints of the table, named by their numbers."""
    place = Namespace.fresh(api)
    path = f"/apis/checkpoint-operator.dev/v1alpha1/namespaces/{place.name}/checkpoints"
    for number, (spec, status, _) in enumerate(TABLE.values()):
        name = f"run-{number}"
        made, answer = api.send("POST", path, checkpoint(name, **spec))
        assert made == 201, answer
        if status:
            patch = {"status": status}
            kind = "application/merge-patch+json"
            made, answer = api.send("PATCH", f"{path}/{name}/status", patch, content_type=kind)
            assert made == 200, answer
    return place


def test_policy_and_webhook_do_the_same_to_every_pod(policies: ApiServer, webhook_chart: ApiServer) -> None:
    by_policy, by_webhook = (prepared(api) for api in (policies, webhook_chart))
    outcomes = {}
    for number, (case, (_, _, body)) in enumerate(TABLE.items()):
        labels = body["metadata"].get("labels", {})
        if labels.get(environment.POD_LABEL) == "run":
            labels[environment.POD_LABEL] = f"run-{number}"
        wanted = verdict(by_webhook, body)
        # The API server's cache for policies lags behind a little.
        assert eventually(partial(verdict, by_policy, body), partial(operator.eq, wanted)) == wanted
        outcomes[case] = wanted[0]
    assert {case for case, outcome in outcomes.items() if outcome == "denied"} == DENIED
