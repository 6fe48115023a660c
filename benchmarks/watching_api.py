"""What an API server was asked to do, and when Checkpoints show what was committed."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kubernetes import client, config, watch
from urllib3.exceptions import HTTPError

from checkpoint_sidecar.core import api
from localcluster.client import ApiServer

_REQUESTS = re.compile(r"^apiserver_request_total\{(.*)\} ([0-9.e+]+)$", re.MULTILINE)
_LABELS = re.compile(r'(\w+)="([^"]*)"')
_OURS = {"checkpoints": "Checkpoint", "checkpointsnapshots": "CheckpointSnapshot", "events": "Event", "pods": "pod"}
_WRITES = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_READS = {"GET": "get", "LIST": "list"}


def asked(server: ApiServer) -> Counter[str]:
    """Requests about what the operator deals with, since the start of the server: ``patch Checkpoint/status``."""
    found: Counter[str] = Counter()
    for labels, count in _REQUESTS.findall(server.get("/metrics", timeout=30)):
        named = dict(_LABELS.findall(labels))
        verb = {**_WRITES, **_READS}.get(named["verb"])
        if verb is None or named["resource"] not in _OURS:
            continue
        part = f"/{named['subresource']}" if named["subresource"] else ""
        found[f"{verb} {_OURS[named['resource']]}{part}"] += int(float(count))
    return found


def writes(requests: Counter[str]) -> Counter[str]:
    """Those that change something."""
    return Counter({what: count for what, count in requests.items() if what.split()[0] in _WRITES.values() and count})


class Latest:
    """When each snapshot was first seen as the latest of its Checkpoint, and which Checkpoints are ready."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        self.ready: set[tuple[str, str]] = set()

    def show(self, body: dict[str, Any]) -> None:
        status, now = body.get("status") or {}, time.monotonic()
        conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
        if conditions.get("Ready") == "True":
            self.ready.add((body["metadata"]["namespace"], body["metadata"]["name"]))
        if status.get("latest"):
            self.seen.setdefault(status["latest"]["snapshot"], now)


@contextlib.contextmanager
def latest(server: ApiServer) -> Iterator[Latest]:
    """Watch all Checkpoints."""
    found, watching = Latest(), watch.Watch()
    connection = config.new_client_from_config(str(server.kubeconfig))
    custom = client.CustomObjectsApi(connection)

    def follow() -> None:
        # The server ends before this thread does.
        with contextlib.suppress(HTTPError):
            for event in watching.stream(
                custom.list_cluster_custom_object, api.GROUP, api.VERSION, api.CHECKPOINT_PLURAL, timeout_seconds=3600
            ):
                found.show(event["object"])

    threading.Thread(target=follow, daemon=True).start()
    try:
        yield found
    finally:
        watching.stop()
