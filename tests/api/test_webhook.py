"""The webhook as a deployment: replicas that come and go, certificates that change, a cluster that needs neither."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import functools
import http.server
import json
import operator
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from checkpoint_operator.injection.certificates import Stored, advanced
from checkpoint_sidecar.core import environment
from localcluster import controlplane, network, workspace
from localcluster.client import ApiServer
from support.admission import Body, Namespace, checkpoint, eventually, pod
from support.charts import CHART
from support.webhooks import CONFIGURATION, NAME, NAMESPACE, Webhooks, needs, offers, running

pytestmark = pytest.mark.api

DAY = dt.timedelta(days=1)
NOW = functools.partial(dt.datetime.now, dt.UTC)
EMPTY = '--patch=[{"op": "remove", "path": "/data"}]'


@pytest.fixture(scope="module")
def server(api_server: ApiServer, helm: Path) -> Iterator[ApiServer]:
    """An API server of its own, on which the chart is installed with the webhook; no replica runs."""
    with workspace.temporary("webhook") as place:
        started = controlplane.start(place, network.free_ports()).api
        options = ("--namespace=operators", "--create-namespace", "--set=injection.mode=Webhook")
        started.helm("install", "ckpt", str(CHART), *options)
        started.wait_for_kinds()
        yield started


@pytest.fixture
def webhooks(server: ApiServer, tmp_path: Path) -> Iterator[Webhooks]:
    """The webhook, of which a test starts the replicas."""
    with running(server, tmp_path, replicas=0) as found:
        yield found


@pytest.fixture
def team(server: ApiServer) -> Namespace:
    """A namespace with the Checkpoint ``run``."""
    place = Namespace.fresh(server)
    place.create(checkpoint(storage={"url": "s3://bucket/run", "credentialsSecret": {"name": "keys"}}))
    return place


def ask(place: Namespace, body: Body) -> tuple[int, Any]:
    """Status, and the pod as admitted or the message, without storing anything."""
    status, answer = place.api.send("POST", f"/api/v1/namespaces/{place.name}/pods?dryRun=All", body)
    return status, answer if status == 201 else answer["message"]


def is_injected(answer: Body) -> bool:
    names = [entry["name"] for entry in answer["spec"]["containers"][0].get("env", ())]
    return environment.URL in names


class Creating:
    """Creates labelled pods as fast as the server answers, and keeps what became of each."""

    def __init__(self, place: Namespace) -> None:
        self.outcomes: list[str] = []
        self._place = place
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Creating:
        self._thread.start()
        eventually(lambda: self.outcomes.count("injected"), lambda count: count > 0, timeout_seconds=60)
        self.outcomes.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def count(self) -> Counter[str]:
        return Counter(self.outcomes)

    def await_more(self, pods: int) -> None:
        """Wait until so many more were injected."""
        until = self.count()["injected"] + pods
        eventually(self.count, lambda found: found["injected"] >= until, timeout_seconds=60)

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            status, answer = ask(self._place, pod())
            outcome = answer if status != 201 else "injected" if is_injected(answer) else "bare"
            self.outcomes.append(outcome)


def test_replicas_that_start_at_once_agree_on_one_certificate(webhooks: Webhooks, team: Namespace) -> None:
    launched = [webhooks.launch() for _ in range(3)]
    for replica in launched:
        webhooks.await_ready(replica)
    stored = webhooks.secret()
    assert {replica.certificate() for replica in launched} == {base64.b64decode(stored["tls.crt"]).decode()}
    assert webhooks.configuration()["clientConfig"]["caBundle"] == stored["ca.crt"]
    assert len(x509.load_pem_x509_certificates(base64.b64decode(stored["ca.crt"]))) == 1
    eventually(lambda: ask(team, pod())[0], lambda status: status == 201)


def test_while_a_replica_is_killed_the_other_one_serves(webhooks: Webhooks, team: Namespace) -> None:
    first, _ = webhooks.start(), webhooks.start()
    with Creating(team) as creating:
        creating.await_more(20)
        first.process.kill()
        creating.await_more(50)
    found = creating.count()
    refused = sum(count for outcome, count in found.items() if outcome != "injected")
    assert found["bare"] == 0
    assert refused <= 1, f"{found}: at most the review that the killed replica was answering"


def test_a_rollout_refuses_no_pod(webhooks: Webhooks, team: Namespace) -> None:
    old = [webhooks.start(), webhooks.start()]
    with Creating(team) as creating:
        for replica in old:
            webhooks.start()
            replica.process.send_signal(signal.SIGTERM)
            webhooks.service.ports.remove(replica.port)
            assert replica.process.wait(timeout=30) == 0
        creating.await_more(20)
    assert creating.count().keys() == {"injected"}, creating.count()


def test_without_any_replica_labelled_pods_are_denied_and_all_others_created(
    webhooks: Webhooks, team: Namespace
) -> None:
    status, message = ask(team, pod())
    assert status == 500
    assert 'failed calling webhook "injection.checkpoint-operator.dev"' in message
    assert f"https://{NAME}.{NAMESPACE}.svc:443/mutate" in message
    assert ask(team, pod(None))[0] == 201
    for resource, body in {
        "configmaps": {"metadata": {"name": "c", "labels": {environment.POD_LABEL: "run"}}},
        "serviceaccounts": {"metadata": {"name": "s", "labels": {environment.POD_LABEL: "run"}}},
    }.items():
        assert team.api.send("POST", f"/api/v1/namespaces/{team.name}/{resource}?dryRun=All", body)[0] == 201
    webhooks.start()
    eventually(lambda: ask(team, pod()), lambda answer: answer[0] == 201 and is_injected(answer[1]))


@pytest.mark.parametrize("bundle", ["", "bm90aGluZw=="], ids=["removed", "garbage"])
def test_a_ca_bundle_that_was_changed_is_put_right(webhooks: Webhooks, team: Namespace, bundle: str) -> None:
    webhooks.start("--certificate-lifetime=100s")
    right = webhooks.configuration()["clientConfig"]["caBundle"]
    operation = {"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle or None}
    if bundle:
        operation["value"] = base64.b64encode(advanced(Stored(), "x", DAY, NOW()).authorities).decode()
    path = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{CONFIGURATION}"
    kind = "application/json-patch+json"
    assert team.api.send("PATCH", path, [operation], content_type=kind)[0] == 200
    eventually(lambda: webhooks.configuration()["clientConfig"].get("caBundle"), lambda found: found == right)
    eventually(lambda: ask(team, pod())[0], lambda status: status == 201)


def test_an_upgrade_of_the_chart_leaves_certificate_and_ca_bundle_alone(webhooks: Webhooks, team: Namespace) -> None:
    webhooks.start()
    before = webhooks.secret(), webhooks.configuration()
    with Creating(team) as creating:
        options = ("--namespace=operators", "--set=injection.mode=Webhook,injection.webhook.timeoutSeconds=7")
        team.api.helm("upgrade", "ckpt", str(CHART), *options)
        creating.await_more(20)
    assert creating.count().keys() == {"injected"}, creating.count()
    assert (webhooks.secret(), webhooks.configuration() | {"timeoutSeconds": 5}) == before


def test_certificates_are_replaced_while_pods_are_created_and_none_is_refused(
    webhooks: Webhooks, team: Namespace
) -> None:
    lifetime = "--certificate-lifetime=24s"
    # Whatever other tests left is too young to be replaced by itself.
    team.api.kubectl("patch", "secret", NAME, f"--namespace={NAMESPACE}", "--type=json", EMPTY)
    replicas = [webhooks.start(lifetime), webhooks.start(lifetime)]
    served: list[str] = []
    with Creating(team) as creating:
        deadline = time.monotonic() + 90
        while len(served) < 3 and time.monotonic() < deadline:
            for replica in replicas:
                if (certificate := replica.certificate()) not in served:
                    served.append(certificate)
            trusted = base64.b64decode(webhooks.configuration()["clientConfig"]["caBundle"]).decode()
            context = ssl.create_default_context(cadata=trusted)
            with (
                socket.create_connection(("127.0.0.1", replicas[0].port)) as connection,
                context.wrap_socket(connection, server_hostname=f"{NAME}.{NAMESPACE}.svc"),
            ):
                pass
            time.sleep(0.2)
    assert len(served) == 3
    assert creating.count().keys() == {"injected"}, creating.count()


def test_a_certificate_in_a_folder_is_served_anew_when_its_files_change(server: ApiServer, tmp_path: Path) -> None:
    """As cert-manager renews it and the kubelet replaces the files."""
    folder = tmp_path / "certificate"
    folder.mkdir()

    def renew() -> str:
        made = advanced(Stored(), f"{NAME}.{NAMESPACE}.svc", DAY, NOW()).current
        assert made is not None
        (folder / "tls.crt").write_bytes(made.certificate)
        (folder / "tls.key").write_bytes(made.key)
        return made.certificate.decode()

    with running(server, tmp_path, replicas=0) as webhooks:
        webhooks.arguments = ["webhook", f"--certificate-folder={folder}", "--certificate-lifetime=100s"]
        replica = webhooks.launch()
        eventually(lambda: "could not be refreshed" in replica.log.read_text(), bool, timeout_seconds=60)
        for _ in range(2):
            certificate = renew()
            eventually(lambda: replica.get("/readyz"), lambda status: status == 200)
            eventually(replica.certificate, functools.partial(operator.eq, certificate))


def test_the_webhook_may_read_checkpoints_and_keep_its_certificate_and_nothing_else(server: ApiServer) -> None:
    account = f"--as=system:serviceaccount:{NAMESPACE}:{NAME}"
    may = {
        ("get", f"secrets/{NAME}"),
        ("patch", f"secrets/{NAME}"),
        ("get", "checkpoints.checkpoint-operator.dev"),
        ("get", f"mutatingwebhookconfigurations.admissionregistration.k8s.io/{CONFIGURATION}"),
        ("patch", f"mutatingwebhookconfigurations.admissionregistration.k8s.io/{CONFIGURATION}"),
    }
    resources = {resource for _, resource in may} | {"secrets", "secrets/other", "pods", "configmaps", "namespaces"}

    def given(user: str) -> set[str]:
        listed = server.kubectl("auth", "can-i", "--list", user, f"--namespace={NAMESPACE}", "--no-headers")
        return {line.split()[0] for line in listed.splitlines() if not line.startswith(" ")}

    if not offers(server, "validatingadmissionpolicies"):
        may |= {(verb, what.replace("mutating", "validating")) for verb, what in may if "mutating" in what}
    assert given(account) - given(f"--as=system:serviceaccount:{NAMESPACE}:nobody") == {
        what.partition("/")[0] for _, what in may
    }
    for resource in resources:
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
            assert allowed(server, verb, resource) == ((verb, resource) in may), (verb, resource)


def allowed(server: ApiServer, verb: str, what: str) -> bool:
    """Whether the webhook's account may do this in its namespace, to ``<resource>[.<group>][/<name>]``."""
    resource, _, name = what.partition("/")
    plural, _, group = resource.partition(".")
    asked = {"verb": verb, "resource": plural, "group": group, "name": name, "namespace": NAMESPACE}
    review = {"spec": {"resourceAttributes": asked}}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    status, answer = server.send("POST", path, review, user=f"system:serviceaccount:{NAMESPACE}:{NAME}")
    assert status == 201, answer
    return bool(answer["status"]["allowed"])


def test_a_container_that_another_webhook_adds_later_is_injected_too(webhooks: Webhooks, team: Namespace) -> None:
    """The API server asks again after the change, and what is there already stays as it is."""
    webhooks.start()
    with sidecar_injector(team.api, team.name) as calls:
        status, answer = eventually(
            lambda: ask(team, pod()), lambda it: it[0] == 201 and len(it[1]["spec"]["containers"]) == 2
        )
        assert status == 201
        for container in answer["spec"]["containers"]:
            names = [entry["name"] for entry in container["env"]]
            assert environment.URL in names
            assert len(names) == len(set(names))
            assert [mount["mountPath"] for mount in container["volumeMounts"]] == [environment.CREDENTIALS_MOUNT]
        assert len(answer["spec"]["volumes"]) == 1
        assert calls


@contextlib.contextmanager
def sidecar_injector(api: ApiServer, namespace: str) -> Iterator[list[str]]:
    """Another webhook, which comes after ours and adds a container to pods with variables."""
    calls: list[str] = []

    class Adds(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
            containers = request["object"]["spec"]["containers"]
            late = {"op": "add", "path": "/spec/containers/-", "value": {"name": "late", "image": "i"}}
            patch = [late] if len(containers) == 1 and "env" in containers[0] else []
            calls.append(request["uid"])
            response: Body = {"uid": request["uid"], "allowed": True, "patchType": "JSONPatch"}
            response["patch"] = base64.b64encode(json.dumps(patch).encode()).decode()
            body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    made = advanced(Stored(), "localhost", DAY, NOW())
    assert made.current is not None
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Adds)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    pem = api.directory / "late.pem"
    pem.write_bytes(made.current.certificate + made.current.key)
    context.load_cert_chain(pem)
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    webhook = {
        "name": "late.example.com",
        "clientConfig": {
            "url": f"https://localhost:{listener.server_address[1]}/",
            "caBundle": base64.b64encode(made.authorities).decode(),
        },
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"}
    body = {**kind, "metadata": {"name": "zz-late"}, "webhooks": [webhook]}
    api.kubectl("apply", "--filename=-", stdin=json.dumps(body))
    try:
        yield calls
    finally:
        api.kubectl("delete", "mutatingwebhookconfiguration", "zz-late")
        listener.shutdown()


def test_changing_between_policy_and_webhook_admits_no_pod_bare(
    server: ApiServer, team: Namespace, tmp_path: Path
) -> None:
    needs(server, "mutatingadmissionpolicies")

    def change_to(mode: str) -> None:
        server.helm("upgrade", "ckpt", str(CHART), "--namespace=operators", f"--set=injection.mode={mode}")

    with running(server, tmp_path), Creating(team) as creating:
        change_to("Policy")
        creating.await_more(20)
    assert creating.count()["bare"] == 0
    with Creating(team) as creating:
        change_to("Webhook")
        # The Service, the account and the Secret are new; until a replica serves, pods are denied.
        with running(server, tmp_path):
            creating.await_more(20)
    assert creating.count()["bare"] == 0
