"""A pod in the demo's namespace: the object store, unless the user gave a bucket, and a shell beside the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from demo import manifests
from demo.comparison import Comparison
from demo.current.context import Context
from demo.current.images import Programs
from demo.current.preflight import Bucket
from demo.training import wait_for
from localcluster import network, objectstore
from localcluster.client import CommandError
from localcluster.images import PodPython

NAME = "workbench"
SCRIPTS = "scripts"
SCRIPTS_FOLDER = "/demo"
FILES = (
    manifests.TRAINING_SCRIPT,
    manifests.REPOSITORY / "tests" / "demo" / "comparison.py",
    Path(__file__).with_name("store.py"),
)
IDENTITIES = "object-store"
IDENTITIES_FOLDER = "/identities"
IDENTITIES_FILE = "identities.json"
DATA_FOLDER = "/data"
BUCKET = "training"
HOPELESS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
"""Reasons for which a container waits that waiting does not mend."""
START_SECONDS = 900.0
"""Most of it for pulling an image of some GB."""


def scripts(python: PodPython) -> PodPython:
    """`python` with the scripts of the demo in `SCRIPTS_FOLDER`."""
    return replace(
        python,
        volumes=[*python.volumes, {"name": SCRIPTS, "configMap": {"name": SCRIPTS}}],
        volume_mounts=[*python.volume_mounts, {"name": SCRIPTS, "mountPath": SCRIPTS_FOLDER, "readOnly": True}],
    )


class Workbench:
    """The pod, in a namespace that exists.

    Args:
        given: The user's bucket; None: serve one.
    """

    def __init__(self, cluster: Context, namespace: str, programs: Programs, given: Bucket | None) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._programs = programs
        self._given = given

    def start(self) -> Bucket:
        """Start the pod; return the bucket as every pod reaches it. Raises `CommandError` or `TimeoutError`."""
        if self._given:
            self._apply(self._given, [self._python, "-c", "import time; time.sleep(10**6)"])
            self._wait()
            return self._given
        access_key, secret_key = objectstore.fresh_keys()
        ports = network.free_ports()
        port = next(ports)
        address = self._programs.address or "$(POD_IP)"
        command = objectstore.server_command(
            Path(self._python).with_name("weed"),
            address,
            port,
            ports,
            folder=Path(DATA_FOLDER),
            identities=Path(IDENTITIES_FOLDER, IDENTITIES_FILE),
        )
        keys = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
        bucket = Bucket(f"s3://{BUCKET}", "", objectstore.REGION, keys)
        identities = objectstore.identities_text(access_key, secret_key)
        prepare = f'mkdir -p {DATA_FOLDER}/objects && exec "$@"'
        self._apply(bucket, ["sh", "-c", prepare, "sh", *command], _secret(IDENTITIES, {IDENTITIES_FILE: identities}))
        pod_address = self._wait()
        host = self._programs.address or (f"[{pod_address}]" if ":" in pod_address else pod_address)
        bucket = replace(bucket, endpoint=f"http://{host}:{port}")
        self.run(bucket, "store.py", "create", bucket.url)
        return bucket

    def run(self, bucket: Bucket, script: str, *arguments: str) -> str:
        """Run one of the scripts beside the data; return its output. Raises `CommandError`."""
        return self._cluster.kubectl(*self.running(bucket, script, *arguments))

    def running(self, bucket: Bucket, script: str, *arguments: str) -> list[str]:
        """The arguments of kubectl with which `run` does so."""
        place = {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_REGION": bucket.region}
        variables = [f"{name}={value}" for name, value in place.items() if value]
        command = ["env", *variables, self._python, f"{SCRIPTS_FOLDER}/{script}", *arguments]
        return [f"--namespace={self._namespace}", "exec", NAME, "--", *command]

    def compare(self, bucket: Bucket, left: str, right: str, step: int) -> Comparison:
        """Compare two runs at a step. Raises `CommandError`."""
        found = json.loads(self.run(bucket, "comparison.py", left, right, str(step)))
        return Comparison(found["tensors"], tuple(found["differing"]))

    @property
    def _python(self) -> str:
        return self._programs.training.python

    def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self._cluster.kubectl(f"--namespace={self._namespace}", *arguments, stdin=stdin)

    def _apply(self, bucket: Bucket, command: list[str], *more: manifests.Manifest) -> None:
        texts = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": SCRIPTS},
            "data": {file.name: file.read_text() for file in FILES},
        }
        objects = (texts, manifests.secret(bucket), *more, self._pod(command))
        self._kubectl("apply", "-f", "-", stdin=manifests.to_stdin(*objects))

    def _pod(self, command: list[str]) -> manifests.Manifest:
        python = scripts(self._programs.training)
        folders = {"data": DATA_FOLDER, IDENTITIES: IDENTITIES_FOLDER}
        # Optional: with a bucket of the user's there is no server.
        secret = {"secretName": IDENTITIES, "optional": True}
        container = {
            "name": NAME,
            "image": python.image,
            "command": command,
            "env": [
                *python.environment,
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "envFrom": [{"secretRef": {"name": manifests.SECRET}}],
            "volumeMounts": [
                *python.volume_mounts,
                *({"name": name, "mountPath": path} for name, path in folders.items()),
            ],
            **python.container,
        }
        spec = {
            "containers": [container],
            "volumes": [
                *python.volumes,
                {"name": "data", "emptyDir": {}},
                {"name": IDENTITIES, "secret": secret},
            ],
            "terminationGracePeriodSeconds": 1,
            **python.pod,
        }
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME}, "spec": spec}

    def _wait(self) -> str:
        """Wait until the pod runs; return its address."""

        def address() -> str | None:
            status = json.loads(self._kubectl("get", "pod", NAME, "--output=json"))["status"]
            for container in status.get("containerStatuses", []):
                waiting = container["state"].get("waiting", {})
                if waiting.get("reason") in HOPELESS or "terminated" in container["state"]:
                    raise CommandError(f"start pod {NAME}: {waiting or container['state']}\n{self._describe()}")
            return status.get("podIP") if status["phase"] == "Running" else None

        return wait_for(f"pod {NAME} to run", address, timeout=START_SECONDS, context=self._describe)

    def _describe(self) -> str:
        parts = (("get", "pods", "--output=wide"), ("get", "events"), ("logs", NAME, "--tail=20"))
        return "\n".join(self._cluster.kubectl(f"--namespace={self._namespace}", *part, check=False) for part in parts)


def _secret(name: str, texts: dict[str, str]) -> manifests.Manifest:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": texts}
