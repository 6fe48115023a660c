"""The only client of the API server, except for kopf's watches. Takes and returns plain dicts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

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

Body = dict[str, Any]
WebhookKind = Literal["mutatingwebhookconfiguration", "validatingwebhookconfiguration"]


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


class _ModestClient(client.ApiClient):
    """Limits the requests at a time: the API server has other clients."""

    def __init__(self, configuration: client.Configuration) -> None:
        super().__init__(configuration)
        self._turns = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def call_api(self, *arguments: Any, **options: Any) -> Any:
        async with self._turns:
            return await super().call_api(*arguments, **options)


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
        self._client = _ModestClient(configuration)
        self._core = client.CoreV1Api(self._client)
        self._custom = client.CustomObjectsApi(self._client)
        self._admission = client.AdmissionregistrationV1Api(self._client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def cluster_uid(self) -> str:
        """UID of the namespace kube-system, which stands for the cluster in a run's owner."""
        call = self._core.read_namespace("kube-system", _request_timeout=REQUEST_SECONDS)
        namespace = await _answer("read namespace", "kube-system", call)
        return str(namespace.metadata.uid)

    async def checkpoint(self, key: Key) -> Body | None:
        """The Checkpoint, or None when it does not exist."""
        call = self._custom.get_namespaced_custom_object(
            api.GROUP,
            api.VERSION,
            key.namespace,
            api.CHECKPOINT_PLURAL,
            key.name,
            _request_timeout=REQUEST_SECONDS,
        )
        body: Body | None = await _found("read Checkpoint", str(key), call)
        return body

    async def checkpoints(self, namespace: str | None) -> list[Body]:
        """All Checkpoints of a namespace, or of the cluster: complete, or an error."""
        if namespace is None:
            return await _pages(
                "list Checkpoints",
                "in all namespaces",
                lambda **page: self._custom.list_custom_object_for_all_namespaces(
                    api.GROUP, api.VERSION, api.CHECKPOINT_PLURAL, **page
                ),
            )
        return await _pages(
            "list Checkpoints",
            f"in {namespace}",
            lambda **page: self._custom.list_namespaced_custom_object(
                api.GROUP, api.VERSION, namespace, api.CHECKPOINT_PLURAL, **page
            ),
        )

    async def snapshots(self, key: Key) -> list[Body]:
        """The CheckpointSnapshots of a Checkpoint: complete, or an error."""
        return await _pages(
            "list CheckpointSnapshots",
            f"of {key}",
            lambda **page: self._custom.list_namespaced_custom_object(
                api.GROUP,
                api.VERSION,
                key.namespace,
                api.SNAPSHOT_PLURAL,
                label_selector=f"{POD_LABEL}={key.name}",
                **page,
            ),
        )

    async def pods(self, key: Key) -> list[Body]:
        """The pods labelled with a Checkpoint's name: complete, or an error."""
        selector = f"{POD_LABEL}={key.name}"

        async def page(**arguments: Any) -> Body:
            pods = await self._core.list_namespaced_pod(key.namespace, label_selector=selector, **arguments)
            body: Body = self._client.sanitize_for_serialization(pods)  # type: ignore[no-untyped-call]
            return body

        return await _pages("list pods", f"of {key}", page)

    async def create_pod(self, body: Mapping[str, Any]) -> bool:
        """Create a pod; False when one of that name exists."""
        metadata = body["metadata"]
        call = self._core.create_namespaced_pod(
            metadata["namespace"],
            dict(body),  # type: ignore[arg-type]  # see create_event
            field_manager=FIELD_MANAGER,
            _request_timeout=REQUEST_SECONDS,
        )
        return await _done("create pod", metadata["name"], call, unless=(_CONFLICT,))

    async def delete_pod(self, namespace: str, name: str, uid: str) -> bool:
        """Delete this very pod; False when it is gone."""
        call = self._core.delete_namespaced_pod(
            name,
            namespace,
            body=client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid)),
            _request_timeout=REQUEST_SECONDS,
        )
        return await _done("delete pod", name, call, unless=(_NOT_FOUND, _CONFLICT))

    async def evict_pod(self, namespace: str, name: str, uid: str) -> bool:
        """Evict this very pod, as far as PodDisruptionBudgets let it (else status 429); False when it is gone."""
        eviction = client.V1Eviction(
            metadata=client.V1ObjectMeta(name=name, namespace=namespace),
            delete_options=client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid)),
        )
        call = self._core.create_namespaced_pod_eviction(
            name, namespace, eviction, field_manager=FIELD_MANAGER, _request_timeout=REQUEST_SECONDS
        )
        return await _done("evict pod", name, call, unless=(_NOT_FOUND, _CONFLICT))

    async def secret(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """The Secret's values as text, or None when it does not exist. Values that are no text are left out."""
        call = self._core.read_namespaced_secret(name, namespace, _request_timeout=REQUEST_SECONDS)
        secret = await _found("read Secret", f"{namespace}/{name}", call)
        if secret is None:
            return None
        values: dict[str, str] = {}
        for key, encoded in (secret.data or {}).items():
            try:
                values[key] = base64.b64decode(encoded).decode().strip()
            except ValueError:
                continue
        return values

    async def secret_data(self, namespace: str, name: str) -> tuple[str, dict[str, bytes]] | None:
        """The version of a Secret and its values, or None when it does not exist."""
        call = self._core.read_namespaced_secret(name, namespace, _request_timeout=REQUEST_SECONDS)
        secret = await _found("read Secret", f"{namespace}/{name}", call)
        if secret is None:
            return None
        values = {key: base64.b64decode(encoded) for key, encoded in (secret.data or {}).items()}
        return secret.metadata.resource_version, values

    async def write_secret_data(
        self, namespace: str, name: str, version: str, values: Mapping[str, bytes | None]
    ) -> bool:
        """Write these values of a Secret; None removes one. Returns False if it has changed since this version."""
        data = {key: None if value is None else base64.b64encode(value).decode() for key, value in values.items()}
        call = self._core.patch_namespaced_secret(
            name,
            namespace,
            {"metadata": {"resourceVersion": version}, "data": data},
            field_manager=FIELD_MANAGER,
            _content_type="application/merge-patch+json",
            _request_timeout=REQUEST_SECONDS,
        )
        return await _done("write Secret", f"{namespace}/{name}", call, unless=(_CONFLICT,))

    async def webhooks(self, kind: WebhookKind, name: str) -> tuple[str, dict[str, str]] | None:
        """The version of a webhook configuration, and the CA bundle of each webhook in it (base64, perhaps empty)."""
        read = {
            "mutatingwebhookconfiguration": self._admission.read_mutating_webhook_configuration,
            "validatingwebhookconfiguration": self._admission.read_validating_webhook_configuration,
        }[kind]
        found = await _found(f"read {kind}", name, read(name, _request_timeout=REQUEST_SECONDS))
        if found is None:
            return None
        return found.metadata.resource_version, {
            webhook.name: webhook.client_config.ca_bundle or "" for webhook in found.webhooks or ()
        }

    async def write_ca_bundles(self, kind: WebhookKind, name: str, version: str, bundles: Mapping[str, str]) -> bool:
        """Write CA bundles of webhooks. Returns False if the configuration has changed since this version."""
        write = {
            "mutatingwebhookconfiguration": self._admission.patch_mutating_webhook_configuration,
            "validatingwebhookconfiguration": self._admission.patch_validating_webhook_configuration,
        }[kind]
        webhooks = [{"name": webhook, "clientConfig": {"caBundle": bundle}} for webhook, bundle in bundles.items()]
        call = write(
            name,
            {"metadata": {"resourceVersion": version}, "webhooks": webhooks},
            field_manager=FIELD_MANAGER,
            _content_type="application/strategic-merge-patch+json",
            _request_timeout=REQUEST_SECONDS,
        )
        return await _done(f"write the CA bundle of {kind}", name, call, unless=(_CONFLICT,))

    async def write_checkpoint_status(self, key: Key, uid: str, status: Mapping[str, Any]) -> bool:
        """Replace a Checkpoint's status; False when that object is gone or was created anew."""
        return await self._write_status(api.CHECKPOINT_PLURAL, key.namespace, key.name, status, uid=uid)

    async def write_finalizers(self, key: Key, resource_version: str, finalizers: Sequence[str]) -> bool:
        """Replace a Checkpoint's finalizers; False when it is gone.

        Raises:
            KubeError: Also with 409, if it was changed since it had ``resource_version``.
        """
        patch = {"metadata": {"resourceVersion": resource_version, "finalizers": list(finalizers)}}
        call = self._custom.patch_namespaced_custom_object(
            api.GROUP,
            api.VERSION,
            key.namespace,
            api.CHECKPOINT_PLURAL,
            key.name,
            patch,
            field_manager=FIELD_MANAGER,
            _content_type="application/merge-patch+json",
            _request_timeout=REQUEST_SECONDS,
        )
        return await _done("write the finalizers of Checkpoint", str(key), call, unless=(_NOT_FOUND,))

    async def namespace_deleted(self, name: str) -> bool:
        """Whether a namespace is going away."""
        call = self._core.read_namespace(name, _request_timeout=REQUEST_SECONDS)
        namespace = await _found("read namespace", name, call)
        return namespace is None or namespace.metadata.deletion_timestamp is not None

    async def write_snapshot_status(self, namespace: str, name: str, status: Mapping[str, Any]) -> bool:
        """Replace a CheckpointSnapshot's status; False when it is gone."""
        return await self._write_status(api.SNAPSHOT_PLURAL, namespace, name, status)

    async def create_snapshot(self, body: Mapping[str, Any]) -> bool:
        """Create a CheckpointSnapshot; False when it exists."""
        metadata = body["metadata"]
        call = self._custom.create_namespaced_custom_object(
            api.GROUP,
            api.VERSION,
            metadata["namespace"],
            api.SNAPSHOT_PLURAL,
            dict(body),
            field_manager=FIELD_MANAGER,
            _request_timeout=REQUEST_SECONDS,
        )
        return await _done("create CheckpointSnapshot", metadata["name"], call, unless=(_CONFLICT,))

    async def delete_snapshot(self, namespace: str, name: str, uid: str) -> None:
        """Delete a CheckpointSnapshot, if it is there and still the one with this UID."""
        call = self._custom.delete_namespaced_custom_object(
            api.GROUP,
            api.VERSION,
            namespace,
            api.SNAPSHOT_PLURAL,
            name,
            body=client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid)),
            _request_timeout=REQUEST_SECONDS,
        )
        await _done("delete CheckpointSnapshot", name, call, unless=(_NOT_FOUND, _CONFLICT))

    @_persistently
    async def create_event(self, body: Mapping[str, Any]) -> bool:
        """Create an Event, with retries, because no later pass repeats it. False when one of that name exists."""
        call = self._core.create_namespaced_event(
            body["metadata"]["namespace"],
            dict(body),  # type: ignore[arg-type]  # a model would only be turned into this very dict
            field_manager=FIELD_MANAGER,
            _request_timeout=REQUEST_SECONDS,
        )
        return await _done("create Event", body["metadata"]["name"], call, unless=(_CONFLICT,))

    async def served(self) -> frozenset[str]:
        """Resources and subresources of our API that the server has."""
        call = self._custom.get_api_resources(api.GROUP, api.VERSION, _request_timeout=REQUEST_SECONDS)
        found = await _found("discover", api.API_VERSION, call)
        return frozenset(resource.name for resource in found.resources) if found else frozenset()

    async def available_pods(self, namespace: str, name: str) -> int | None:
        """How many pods of a Deployment are available, or None when it does not exist."""
        call = client.AppsV1Api(self._client).read_namespaced_deployment(
            name, namespace, _request_timeout=REQUEST_SECONDS
        )
        deployment = await _found("read Deployment", f"{namespace}/{name}", call)
        return None if deployment is None else deployment.status.available_replicas or 0

    async def may(self, right: Right) -> bool:
        """Whether this very client has a right."""
        resource, _, subresource = right.resource.partition("/")
        asked = client.V1ResourceAttributes(
            verb=right.verb,
            group=right.group,
            resource=resource,
            subresource=subresource or None,
            namespace=right.namespace or None,
        )
        review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=asked))
        call = client.AuthorizationV1Api(self._client).create_self_subject_access_review(
            review, _request_timeout=REQUEST_SECONDS
        )
        answer = await _answer("review the right to", str(right), call)
        return bool(answer.status.allowed)

    async def _write_status(
        self, plural: str, namespace: str, name: str, status: Mapping[str, Any], *, uid: str | None = None
    ) -> bool:
        # A JSON patch replaces the whole status as one value. Merge patches and server-side apply merge lists and
        # nested objects, and what comes back would not equal what was sent: every pass would write again.
        patch: list[Body] = [{"op": "add", "path": "/status", "value": dict(status)}]
        self.statuses.note((plural, namespace, name), status)
        if uid is not None:
            patch.insert(0, {"op": "test", "path": "/metadata/uid", "value": uid})
        call = self._custom.patch_namespaced_custom_object_status(
            api.GROUP,
            api.VERSION,
            namespace,
            plural,
            name,
            patch,
            field_manager=FIELD_MANAGER,
            _content_type="application/json-patch+json",
            _request_timeout=REQUEST_SECONDS,
        )
        # A failed "test" is 422 with newer API servers; so is a status that the schema refuses, which must not be
        # taken for it.
        unless = (_NOT_FOUND,) if uid is None else (_NOT_FOUND, _CONFLICT)
        return await _done(f"write the status of {plural}", f"{namespace}/{name}", call, unless=unless)


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


async def _found(operation: str, subject: str, call: Awaitable[Any]) -> Any:
    try:
        return await _answer(operation, subject, call)
    except KubeError as error:
        if error.status == _NOT_FOUND:
            return None
        raise


async def _done(operation: str, subject: str, call: Awaitable[Any], *, unless: tuple[int, ...]) -> bool:
    try:
        await _answer(operation, subject, call)
    except KubeError as error:
        if error.status in unless:
            return False
        raise
    return True


async def _pages(operation: str, subject: str, read: Callable[..., Awaitable[Any]]) -> list[Body]:
    items: list[Body] = []
    token = ""
    while True:
        arguments: Body = {"limit": _PAGE, "_request_timeout": REQUEST_SECONDS}
        if token:
            arguments["_continue"] = token
        page = await _answer(operation, subject, read(**arguments))
        items += page.get("items") or []
        token = (page.get("metadata") or {}).get("continue") or ""
        if not token:
            return items
