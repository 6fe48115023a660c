"""Decide whether the demo can run on a cluster, and how. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from demo.current.facts import Facts
from demo.interruptions import Drain, Evict, Interruption

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True)
class Bucket:
    """A bucket, or a folder in it, as pods and the operator reach it.

    Attributes:
        endpoint: URL of the service; empty for AWS's own.
    """

    url: str
    endpoint: str
    region: str
    keys: dict[str, str]


class RefusedError(Exception):
    """The demo does not run like this; the message says why and what to do."""


def check(facts: Facts, context: str) -> None:
    """Raise `RefusedError` unless the demo can run on the cluster without touching what is there."""
    if facts.forbidden:
        raise RefusedError(
            f"install the operator: context {context} may not {', '.join(facts.forbidden)}. "
            "Use a context with the rights of cluster-admin."
        )
    if facts.definitions:
        raise RefusedError(
            f"install the operator: the cluster already has {', '.join(facts.definitions)}, which the demo must not "
            "touch. Use another cluster; or uninstall the operator there and delete these definitions, which deletes "
            "all Checkpoints."
        )
    if facts.nodes and not any(node.open for node in facts.nodes):
        raise RefusedError(
            f"schedule a pod: none of the nodes {', '.join(node.name for node in facts.nodes)} is ready and free of "
            "taints. Uncordon or add one."
        )


def interruption(facts: Facts, selector: str, beforehand: Callable[[str], None]) -> tuple[Interruption, str]:
    """How to interrupt the training, and a remark on why it is not a drain, or an empty one.

    Raises `RefusedError` if there is no way.
    """
    ready = [node.name for node in facts.nodes if node.open]
    if len(ready) >= 2 and facts.may_drain:
        return Drain(selector, beforehand), ""
    if not facts.may_evict:
        raise RefusedError(
            "interrupt the training: the context may not create pods/eviction. Use one with the rights of "
            "cluster-admin."
        )
    if facts.may_drain:
        reason = f"a drain needs two schedulable nodes and this cluster has {len(ready)}"
    else:
        reason = "a drain needs the right to cordon nodes, which this context lacks"
    return Evict(), f"{reason}: the pod is evicted by the Eviction API instead"


def bucket(url: str, environment: Mapping[str, str]) -> Bucket:
    """The user's bucket, with keys and endpoint from the environment. Raises `RefusedError`."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise RefusedError(f"use BUCKET={url}: it is not an S3 URL. Write s3://<bucket> or s3://<bucket>/<folder>.")
    if missing := [name for name in KEYS if not environment.get(name)]:
        raise RefusedError(
            f"use BUCKET={url}: {' and '.join(missing)} are not set. Export keys that may read, write and delete there."
        )
    keys = {name: environment[name] for name in (*KEYS, "AWS_SESSION_TOKEN") if environment.get(name)}
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or ""
    return Bucket(url.rstrip("/"), environment.get("AWS_ENDPOINT_URL", ""), region, keys)
