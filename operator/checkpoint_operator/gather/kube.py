"""The only client of the API server, except for kopf's watches. Takes and returns plain dicts."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import tenacity
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from checkpoint_operator.gather.written_status import Statuses
from checkpoint_operator.model.observed import Key
from checkpoint_operator.model.rights import Right
from checkpoint_operator.report.resources import COMPONENT
from checkpoint_sidecar.core import api
from checkpoint_sidecar.core.environment import POD_LABEL

FIELD_MANAGER = COMPONENT
REQUEST_SECONDS = 30.0
_PAGE = 500
_REQUESTS_AT_ONCE = 16
_READ_RETRIES = 3
_NOT_FOUND, _CONFLICT, _TOO_MANY, _SERVER_ERROR = 404, 409, 429, 500
_JSON_PATCH = "application/json-patch+json"
_MERGE_PATCH = "application/merge-patch+json"
_STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"

Body = dict[str, Any]
WebhookKind = Literal["mutatingwebhookconfiguration", "validatingwebhookconfiguration"]


@dataclass(frozen=True)
class _Resource:
    """What the API server serves at a path: ``version`` is its group and version, as the path spells them."""

    version: str
    plural: str

    def at(self, namespace: str = "", *name: str) -> str:
        """The path of a list, of the object of a name, or of a subresource of that; without a namespace: of all."""
        within = ("namespaces", namespace) if namespace else ()
        return "/".join(["", self.version, *(quote(part, safe="") for part in (*within, self.plural, *name))])


_CHECKPOINTS = _Resource(f"apis/{api.API_VERSION}", api.CHECKPOINT_PLURAL)
_SNAPSHOTS = _Resource(f"apis/{api.API_VERSION}", api.SNAPSHOT_PLURAL)
_NAMESPACES = _Resource("api/v1", "namespaces")
_PODS = _Resource("api/v1", "pods")
_SECRETS = _Resource("api/v1", "secrets")
_EVENTS = _Resource("api/v1", "events")
_DEPLOYMENTS = _Resource("apis/apps/v1", "deployments")
_REVIEWS = _Resource("apis/authorization.k8s.io/v1", "selfsubjectaccessreviews")
_WEBHOOKS: dict[WebhookKind, _Resource] = {
    "mutatingwebhookconfiguration": _Resource("apis/admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations"),
    "validatingwebhookconfiguration": _Resource(
        "apis/admissionregistration.k8s.io/v1", "validatingwebhookconfigurations"
    ),
}


class KubeError(Exception):
    """A request to the API server failed. The message holds neither bodies nor headers, which may quote Secrets.

    Attributes:
        status: HTTP status of the answer, or 0 when there was none.
    """

    def __init__(self, operation: str, subject: str, cause: str, *, status: int = 0) -> None:
        super().__init__(f"{operation} {subject}: {cause}")
        self.status = status


def _passes(error: BaseException) -> bool:
    return isinstance(error, KubeError) and (error.status in (0, _TOO_MANY) or error.status >= _SERVER_ERROR)


_persistently = tenacity.retry(
    retry=tenacity.retry_if_exception(_passes),
    wait=tenacity.wait_exponential(multiplier=0.5),
    stop=tenacity.stop_after_attempt(5),
    reraise=True,
)


class _Client(client.ApiClient):
    """Sends JSON and returns JSON, a limited number of requests at a time: the API server has other clients.

    The classes that the package has for each kind stay out. To import those of one API group takes longer and more
    memory than everything else in the operator, and fields that are newer than the package get lost in them.
    """

    def __init__(self, configuration: client.Configuration) -> None:
        super().__init__(configuration)
        self.user_agent = COMPONENT  # in the API server's audit log
        self._turns = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def ask(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", **query: str | int
    ) -> Body:
        """Send one request and return the object in the answer.

        Args:
            kind: Content type of the body.

        Raises:
            ApiException: The API server said no.
            aiohttp.ClientError, OSError: There is no answer.
        """
        if method in ("POST", "PATCH"):
            query["fieldManager"] = FIELD_MANAGER
        headers = {"Accept": "application/json", "Content-Type": kind}
        method, url, headers, *_ = await self.param_serialize(
            method, path, query_params=list(query.items()), header_params=headers, auth_settings=["BearerToken"]
        )
        async with self._turns:
            answer = await self.call_api(method, url, headers, body, _request_timeout=REQUEST_SECONDS)
            content = await answer.read()
        if not 200 <= answer.status < 300:
            raise ApiException(status=answer.status, reason=answer.reason)
        found: Body = json.loads(content)
        return found


class Kube:
    """A connection; use it as an asynchronous context manager.

    Attributes:
        statuses: Each status that it wrote.
    """

    def __init__(self) -> None:
        self.statuses = Statuses()

    async def __aenter__(self) -> Kube:
        configuration = client.Configuration()
        await _load(configuration)
        configuration.retries = _READ_RETRIES
        self._client = _Client(configuration)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def cluster_uid(self) -> str:
        """UID of the namespace kube-system, which stands for the cluster in a run's owner."""
        call = self._client.ask("GET", _NAMESPACES.at("", "kube-system"))
        namespace = await _answer("read namespace", "kube-system", call)
        return str(namespace["metadata"]["uid"])

    async def checkpoint(self, key: Key) -> Body | None:
        """The Checkpoint, or None when it does not exist."""
        return await self._found("read Checkpoint", str(key), _CHECKPOINTS.at(key.namespace, key.name))

    async def checkpoints(self, namespace: str | None) -> list[Body]:
        """All Checkpoints of a namespace, or of the cluster: complete, or an error."""
        place = "in all namespaces" if namespace is None else f"in {namespace}"
        return await self._listed("list Checkpoints", place, _CHECKPOINTS.at(namespace or ""))

    async def snapshots(self, key: Key) -> list[Body]:
        """The CheckpointSnapshots of a Checkpoint: complete, or an error."""
        return await self._listed_of(key, "list CheckpointSnapshots", _SNAPSHOTS)

    async def pods(self, key: Key) -> list[Body]:
        """The pods labelled with a Checkpoint's name: complete, or an error."""
        return await self._listed_of(key, "list pods", _PODS)

    async def create_pod(self, body: Mapping[str, Any]) -> bool:
        """Create a pod; False when one of that name exists."""
        return await self._created("create pod", _PODS, body)

    async def delete_pod(self, namespace: str, name: str, uid: str) -> bool:
        """Delete this very pod; False when it is gone."""
        return await self._deleted("delete pod", _PODS, namespace, name, uid)

    async def evict_pod(self, namespace: str, name: str, uid: str) -> bool:
        """Evict this very pod, as far as PodDisruptionBudgets let it (else status 429); False when it is gone."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": _only(uid),
        }
        call = self._client.ask("POST", _PODS.at(namespace, name, "eviction"), eviction)
        return await _done("evict pod", name, call, unless=(_NOT_FOUND, _CONFLICT))

    async def secret(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """The Secret's values as text, or None when it does not exist. Values that are no text are left out."""
        found = await self.secret_data(namespace, name)
        if found is None:
            return None
        values: dict[str, str] = {}
        for key, value in found[1].items():
            try:
                values[key] = value.decode().strip()
            except ValueError:
                continue
        return values

    async def secret_data(self, namespace: str, name: str) -> tuple[str, dict[str, bytes]] | None:
        """The version of a Secret and its values, or None when it does not exist."""
        secret = await self._found("read Secret", f"{namespace}/{name}", _SECRETS.at(namespace, name))
        if secret is None:
            return None
        values = {key: base64.b64decode(encoded) for key, encoded in (secret.get("data") or {}).items()}
        return secret["metadata"]["resourceVersion"], values

    async def write_secret_data(
        self, namespace: str, name: str, version: str, values: Mapping[str, bytes | None]
    ) -> bool:
        """Write these values of a Secret; None removes one. Returns False if it has changed since this version."""
        data = {key: None if value is None else base64.b64encode(value).decode() for key, value in values.items()}
        patch = {"metadata": {"resourceVersion": version}, "data": data}
        call = self._client.ask("PATCH", _SECRETS.at(namespace, name), patch, kind=_MERGE_PATCH)
        return await _done("write Secret", f"{namespace}/{name}", call, unless=(_CONFLICT,))

    async def webhooks(self, kind: WebhookKind, name: str) -> tuple[str, dict[str, str]] | None:
        """The version of a webhook configuration, and the CA bundle of each webhook in it (base64, perhaps empty)."""
        found = await self._found(f"read {kind}", name, _WEBHOOKS[kind].at("", name))
        if found is None:
            return None
        return found["metadata"]["resourceVersion"], {
            webhook["name"]: webhook["clientConfig"].get("caBundle", "") for webhook in found.get("webhooks", ())
        }

    async def write_ca_bundles(self, kind: WebhookKind, name: str, version: str, bundles: Mapping[str, str]) -> bool:
        """Write CA bundles of webhooks. Returns False if the configuration has changed since this version."""
        webhooks = [{"name": webhook, "clientConfig": {"caBundle": bundle}} for webhook, bundle in bundles.items()]
        patch = {"metadata": {"resourceVersion": version}, "webhooks": webhooks}
        call = self._client.ask("PATCH", _WEBHOOKS[kind].at("", name), patch, kind=_STRATEGIC_MERGE_PATCH)
        return await _done(f"write the CA bundle of {kind}", name, call, unless=(_CONFLICT,))

    async def write_checkpoint_status(self, key: Key, uid: str, status: Mapping[str, Any]) -> bool:
        """Replace a Checkpoint's status; False when that object is gone or was created anew."""
        return await self._write_status(_CHECKPOINTS, key.namespace, key.name, status, uid=uid)

    async def write_finalizers(self, key: Key, resource_version: str, finalizers: Sequence[str]) -> bool:
        """Replace a Checkpoint's finalizers; False when it is gone.

        Raises:
            KubeError: Also with 409, if it was changed since it had ``resource_version``.
        """
        patch = {"metadata": {"resourceVersion": resource_version, "finalizers": list(finalizers)}}
        call = self._client.ask("PATCH", _CHECKPOINTS.at(key.namespace, key.name), patch, kind=_MERGE_PATCH)
        return await _done("write the finalizers of Checkpoint", str(key), call, unless=(_NOT_FOUND,))

    async def namespace_deleted(self, name: str) -> bool:
        """Whether a namespace is going away."""
        namespace = await self._found("read namespace", name, _NAMESPACES.at("", name))
        return namespace is None or "deletionTimestamp" in namespace["metadata"]

    async def write_snapshot_status(self, namespace: str, name: str, status: Mapping[str, Any]) -> bool:
        """Replace a CheckpointSnapshot's status; False when it is gone."""
        return await self._write_status(_SNAPSHOTS, namespace, name, status)

    async def create_snapshot(self, body: Mapping[str, Any]) -> bool:
        """Create a CheckpointSnapshot; False when it exists."""
        return await self._created("create CheckpointSnapshot", _SNAPSHOTS, body)

    async def delete_snapshot(self, namespace: str, name: str, uid: str) -> None:
        """Delete a CheckpointSnapshot, if it is there and still the one with this UID."""
        await self._deleted("delete CheckpointSnapshot", _SNAPSHOTS, namespace, name, uid)

    @_persistently
    async def create_event(self, body: Mapping[str, Any]) -> bool:
        """Create an Event, with retries, because no later pass repeats it. False when one of that name exists."""
        return await self._created("create Event", _EVENTS, body)

    async def served(self) -> frozenset[str]:
        """Resources and subresources of our API that the server has."""
        found = await self._found("discover", api.API_VERSION, f"/apis/{api.API_VERSION}")
        return frozenset(resource["name"] for resource in found["resources"]) if found else frozenset()

    async def available_pods(self, namespace: str, name: str) -> int | None:
        """How many pods of a Deployment are available, or None when it does not exist."""
        deployment = await self._found("read Deployment", f"{namespace}/{name}", _DEPLOYMENTS.at(namespace, name))
        return None if deployment is None else deployment.get("status", {}).get("availableReplicas", 0)

    async def may(self, right: Right) -> bool:
        """Whether this very client has a right."""
        resource, _, subresource = right.resource.partition("/")
        asked = {
            "verb": right.verb,
            "group": right.group,
            "resource": resource,
            "subresource": subresource,
            "namespace": right.namespace,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = await _answer("review the right to", str(right), self._client.ask("POST", _REVIEWS.at(), review))
        return bool(answer["status"]["allowed"])

    async def _found(self, operation: str, subject: str, path: str) -> Body | None:
        try:
            found: Body = await _answer(operation, subject, self._client.ask("GET", path))
        except KubeError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return found

    async def _listed_of(self, key: Key, operation: str, resource: _Resource) -> list[Body]:
        selector = f"{POD_LABEL}={key.name}"
        return await self._listed(operation, f"of {key}", resource.at(key.namespace), labelSelector=selector)

    async def _listed(self, operation: str, subject: str, path: str, **query: str) -> list[Body]:
        items: list[Body] = []
        while True:
            page = await _answer(operation, subject, self._client.ask("GET", path, limit=_PAGE, **query))
            items += page.get("items") or []
            query["continue"] = (page.get("metadata") or {}).get("continue") or ""
            if not query["continue"]:
                return items

    async def _created(self, operation: str, resource: _Resource, body: Mapping[str, Any]) -> bool:
        metadata = body["metadata"]
        call = self._client.ask("POST", resource.at(metadata["namespace"]), dict(body))
        return await _done(operation, metadata["name"], call, unless=(_CONFLICT,))

    async def _deleted(self, operation: str, resource: _Resource, namespace: str, name: str, uid: str) -> bool:
        call = self._client.ask("DELETE", resource.at(namespace, name), _only(uid))
        return await _done(operation, name, call, unless=(_NOT_FOUND, _CONFLICT))

    async def _write_status(
        self, resource: _Resource, namespace: str, name: str, status: Mapping[str, Any], *, uid: str | None = None
    ) -> bool:
        # A JSON patch replaces the whole status as one value. Merge patches and server-side apply merge lists and
        # nested objects, and what comes back would not equal what was sent: every pass would write again.
        patch: list[Body] = [{"op": "add", "path": "/status", "value": dict(status)}]
        self.statuses.note((resource.plural, namespace, name), status)
        if uid is not None:
            patch.insert(0, {"op": "test", "path": "/metadata/uid", "value": uid})
        call = self._client.ask("PATCH", resource.at(namespace, name, "status"), patch, kind=_JSON_PATCH)
        # A failed "test" is 422 with newer API servers; so is a status that the schema refuses, which must not be
        # taken for it.
        unless = (_NOT_FOUND,) if uid is None else (_NOT_FOUND, _CONFLICT)
        return await _done(f"write the status of {resource.plural}", f"{namespace}/{name}", call, unless=unless)


def _only(uid: str) -> Body:
    """Options of a deletion: of nothing but the object with this UID."""
    return {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}


async def _load(configuration: client.Configuration) -> None:
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)


async def _answer(operation: str, subject: str, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except ApiException as error:
        # Its text has the response's body and headers; pass on only the status.
        cause = f"the API server answered {error.status} {error.reason}"
        raise KubeError(operation, subject, cause, status=error.status or 0) from None
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        raise KubeError(operation, subject, f"no answer from the API server: {type(error).__name__}") from error


async def _done(operation: str, subject: str, call: Awaitable[Any], *, unless: tuple[int, ...]) -> bool:
    try:
        await _answer(operation, subject, call)
    except KubeError as error:
        if error.status in unless:
            return False
        raise
    return True
