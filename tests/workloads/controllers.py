"""Installs the controllers of JobSet and Kubeflow Trainer on the two-node cluster.

They run as Deployments, as their users run them, but in the network of the node: this cluster has no other. So the API
server reaches their webhooks on loopback, and trusts a certificate that is made here.
"""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from demo import manifests
from demo.manifests import Manifest
from demo.training import wait_for
from localcluster import images, network
from localcluster.cluster import Cluster
from localcluster.pki import Authority, Pair

CERTIFICATES = "/tmp/k8s-webhook-server/serving-certs"
"""Where both look for them if they do not make their own."""
WEBHOOKS = "manifests.yaml"
ISSUER = "kubernetes.default.svc"
"""Of the tokens of service accounts; Kubeflow Trainer asks it for its keys."""


@dataclass(frozen=True)
class Controller:
    """One controller; `folder` holds its program, its kinds and its webhooks."""

    name: str
    namespace: str
    folder: Path
    host: str
    """The name of its Service, by which its pods would find it."""
    secret: str
    ports: list[int] = field(default_factory=lambda: [*itertools.islice(network.free_ports(), 3)])

    @property
    def configuration(self) -> Manifest:
        webhook, health, status = self.ports
        body: Manifest = {
            "kind": "Configuration",
            "leaderElection": {"leaderElect": False},
            "webhook": {"host": "127.0.0.1", "port": webhook},
            "metrics": {"bindAddress": "0"},
            "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        }
        if self.name == "jobset":
            body["webhook"]["certDir"] = CERTIFICATES
            return body | {
                "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
                "internalCertManagement": {"enable": False},
            }
        return body | {
            "apiVersion": "config.trainer.kubeflow.org/v1alpha1",
            "certManagement": {
                "enable": False,
                "webhookServiceName": self.host.partition(".")[0],
                "webhookSecretName": self.secret,
            },
            "statusServer": {"port": status},
            "featureGates": {"TrainJobStatus": True},
        }


def jobset(folder: Path) -> Controller:
    host = "jobset-webhook-service.jobset-system.svc"
    return Controller("jobset", "jobset-system", folder / "jobset", host, "jobset-webhook-server-cert")


def trainer(folder: Path) -> Controller:
    host = "kubeflow-trainer-controller-manager.kubeflow-system.svc"
    return Controller("trainer", "kubeflow-system", folder / "trainer", host, "kubeflow-trainer-webhook-cert")


def install(cluster: Cluster, controller: Controller, scratch: Path) -> None:
    """Install a controller and wait until it is ready. `scratch` keeps its certificates."""
    authority = Authority(scratch / controller.name)
    pair = authority.issue("webhook", user="webhook", hosts=("127.0.0.1", controller.host))
    kinds = [f"--filename={file}" for file in controller.folder.glob("*.yaml") if file.name != WEBHOOKS]
    cluster.kubectl("apply", "--server-side", *kinds)
    wait_for("its kinds to be served", lambda: _established(cluster), timeout=30)
    objects = [*_running(cluster, controller, authority, pair)]
    cluster.kubectl("apply", "-f", "-", stdin=manifests.to_stdin(*objects))
    name = f"deployment/{controller.name}"
    cluster.kubectl(f"--namespace={controller.namespace}", "rollout", "status", name, "--timeout=90s")
    cluster.kubectl("apply", "-f", "-", stdin=manifests.to_stdin(*_webhooks(controller, authority)))


def _established(cluster: Cluster) -> bool:
    """Whether all kinds are served. (`kubectl wait` fails on one without a status, as it is at first.)"""
    kinds = json.loads(cluster.kubectl("get", "crds", "--output=json"))["items"]
    conditions = [kind.get("status", {}).get("conditions") or () for kind in kinds]
    return all(any(one["type"] == "Established" and one["status"] == "True" for one in each) for each in conditions)


def _running(cluster: Cluster, controller: Controller, authority: Authority, pair: Pair) -> list[Manifest]:
    """The namespace, the rights, the certificate and the Deployment."""
    metadata = {"name": controller.name, "namespace": controller.namespace}
    account = {"kind": "ServiceAccount", **metadata}
    certificate = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}
    settings = {"config.yaml": json.dumps(controller.configuration)}
    labels = {"app": controller.name}
    return [
        manifests.namespace(controller.namespace),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{controller.name}-controller"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [account],
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": controller.secret, "namespace": controller.namespace},
            "stringData": {name: file.read_text() for name, file in certificate.items()},
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": settings},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": _pod(cluster, controller)},
            },
        },
    ]


def _pod(cluster: Cluster, controller: Controller) -> Manifest:
    health = {"host": "127.0.0.1", "port": controller.ports[1], "path": "/readyz"}
    mounts = {"programs": str(controller.folder), "settings": "/settings", "certificates": CERTIFICATES}
    return {
        "serviceAccountName": controller.name,
        "hostNetwork": True,
        "hostAliases": [{"ip": urlsplit(cluster.url).hostname, "hostnames": [ISSUER]}],
        "nodeSelector": {"kubernetes.io/hostname": cluster.node_names[1]},
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "manager",
                "image": images.EMPTY,
                "command": [str(controller.folder / controller.name), "--config=/settings/config.yaml"],
                "readinessProbe": {"httpGet": health, "periodSeconds": 1},
                "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
            }
        ],
        "volumes": [
            {"name": "programs", "hostPath": {"path": str(controller.folder)}},
            {"name": "settings", "configMap": {"name": controller.name}},
            {"name": "certificates", "secret": {"secretName": controller.secret}},
        ],
    }


def _webhooks(controller: Controller, authority: Authority) -> list[Manifest]:
    """The published configurations, with the address here in the place of a Service."""
    bundle = base64.b64encode(authority.certificate.read_bytes()).decode()
    found: list[Any] = [*yaml.safe_load_all((controller.folder / WEBHOOKS).read_text())]
    for configuration in filter(None, found):
        configuration["metadata"]["name"] = f"{controller.name}-{configuration['kind'].lower()}"
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:{controller.ports[0]}{path}", "caBundle": bundle}
            if path.endswith("-v1-pod"):  # as JobSet's own installation narrows it
                ours = {"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}
                webhook["objectSelector"] = {"matchExpressions": [ours]}
    return [one for one in found if one]
