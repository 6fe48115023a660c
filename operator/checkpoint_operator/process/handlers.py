"""The only module that imports kopf. It turns every event into a key in the queue and decides nothing.

No timers, daemons or change handlers: those put finalizers and annotations on objects, and an object with a finalizer
cannot be deleted while the operator is down.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, cast

import kopf

from checkpoint_operator.model.observed import Key
from checkpoint_operator.process.operator import STOP_SECONDS, Operator
from checkpoint_sidecar.core.api import CHECKPOINT_PLURAL, GROUP, RELEASE_ANNOTATION, SNAPSHOT_PLURAL
from checkpoint_sidecar.core.environment import POD_LABEL


def run(operator: Operator) -> None:
    """Serve until SIGTERM or SIGINT."""
    namespaces = operator.options.namespaces
    kopf.run(
        registry=registry_for(operator),
        settings=_settings(),
        standalone=True,
        # There are no peers, but without an identity kopf would look up the user's name, which a container lacks.
        identity=cast(Any, "checkpoint-operator"),
        clusterwide=not namespaces,
        namespaces=namespaces,
    )


def registry_for(operator: Operator) -> kopf.OperatorRegistry:
    """The handlers, bound to one operator."""
    registry = kopf.OperatorRegistry()
    generations: dict[Key, tuple[Any, ...]] = {}

    @kopf.on.login(registry=registry)
    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
        return _login(settings)

    @kopf.on.startup(registry=registry)
    async def start(**_: Any) -> None:
        try:
            await operator.start()
        except Exception as error:
            # kopf would retry any other error without end, while the pod looks healthy.
            raise kopf.PermanentError(f"the operator cannot start: {error}") from error

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await operator.stop()

    @kopf.on.event(GROUP, CHECKPOINT_PLURAL, registry=registry)
    async def checkpoint(namespace: str | None, name: str | None, event: Mapping[str, Any], **_: Any) -> None:
        key = Key(namespace or "", name or "")
        body = event["object"]
        if event["type"] == "DELETED":
            generations.pop(key, None)
            operator.gone(CHECKPOINT_PLURAL, key)
            operator.wake(key)
        elif _is_news(generations, key, body["metadata"]):
            operator.watched(key, body["metadata"])
        elif operator.changed_by_others(CHECKPOINT_PLURAL, body):
            operator.wake(key)

    @kopf.on.event(GROUP, SNAPSHOT_PLURAL, registry=registry)
    async def snapshot(namespace: str | None, spec: Mapping[str, Any], event: Mapping[str, Any], **_: Any) -> None:
        owner = Key(namespace or "", spec["checkpointRef"]["name"])
        body = event["object"]
        metadata = body["metadata"]
        key = Key(namespace or "", metadata["name"])
        # The operator created a new one and knows it already; any other change is a user's.
        appears = key not in generations and spec["disposition"] == "Auto"
        if event["type"] == "DELETED":
            generations.pop(key, None)
            operator.gone(SNAPSHOT_PLURAL, key)
            operator.wake(owner)
        elif _is_news(generations, key, metadata):
            if not appears:
                operator.wake(owner)
        elif operator.changed_by_others(SNAPSHOT_PLURAL, body):
            operator.wake(owner)

    @kopf.on.event("pods", labels={POD_LABEL: kopf.PRESENT}, registry=registry)
    async def pod(namespace: str | None, labels: Mapping[str, str], event: Mapping[str, Any], **_: Any) -> None:
        operator.show_pod(Key(namespace or "", labels[POD_LABEL]), event["object"])

    if operator.options.watch_nodes:

        @kopf.on.event("v1", "nodes", registry=registry)
        async def node(event: Mapping[str, Any], **_: Any) -> None:
            operator.show_node(event["object"], gone=event["type"] == "DELETED")

    return registry


def _is_news(generations: dict[Key, tuple[Any, ...]], key: Key, metadata: Mapping[str, Any]) -> bool:
    """Whether an object is new or its spec changed. The operator's own status writes must not wake it."""
    release = (metadata.get("annotations") or {}).get(RELEASE_ANNOTATION)
    seen = (metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp"), release)
    known = generations.get(key) == seen
    generations[key] = seen
    return not known


def _login(settings: kopf.OperatorSettings) -> kopf.ConnectionInfo | None:
    info = kopf.login_with_service_account(settings=settings)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if info is not None and host and port:
        # kopf would use the DNS name, which pods on the host's network cannot always resolve.
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        return dataclasses.replace(info, server=server)
    return kopf.login_with_kubeconfig(settings=settings)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.persistence.finalizer = f"{GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    # Namespaces and CRDs are fixed when the chart is installed; watching them needs more rights than the work does.
    settings.scanning.disabled = True
    settings.watching.connect_timeout = 10.0
    settings.watching.chunk_size = 500
    settings.watching.label_selectors["pods"] = POD_LABEL
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 10.0
    settings.networking.enforce_retry_after = True
    settings.process.ultimate_exiting_timeout = STOP_SECONDS + 10
    return settings
