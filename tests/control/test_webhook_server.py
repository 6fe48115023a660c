"""What the webhook answers to API servers, and to whatever else connects to it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from checkpoint_operator.gather.kube import KubeError
from checkpoint_operator.injection import server
from checkpoint_operator.injection.lookup import Lookup
from checkpoint_operator.injection.server import Health, Reviewer
from checkpoint_operator.model.observed import Key
from support.admission import Body, checkpoint, pod

Read = Callable[[Key], Awaitable[dict[str, Any] | None]]


def review(body: Body, namespace: str = "team") -> Body:
    request = {"uid": "1", "namespace": namespace, "object": body}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


async def found(_: Key) -> dict[str, Any] | None:
    return checkpoint()


async def never(_: Key) -> dict[str, Any] | None:
    raise AssertionError("nothing must be read")


def ask(path: str, body: object, read: Read = found, *, ready: bool = True, cluster: str = "8a-1") -> tuple[int, Any]:
    """Post to the webhook: status and answer (also the header Connection, as ``connection``)."""

    async def post() -> tuple[int, Any]:
        reviewer = Reviewer(Lookup(read, clock=lambda: 0.0), cluster_id=cluster, health=Health(ready))
        async with TestClient(TestServer(reviewer.application())) as client:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await client.post(path, data=data)
            text = await answer.text()
            told = json.loads(text)["response"] if answer.status == 200 else {"text": text}
            return answer.status, told | {"connection": answer.headers.get("Connection", "")}

    return asyncio.run(post())


def test_a_pod_is_admitted_with_a_patch() -> None:
    status, answer = ask("/mutate", review(pod()))
    assert (status, answer["uid"], answer["allowed"], answer["patchType"]) == (200, "1", True, "JSONPatch")
    first, *_ = json.loads(base64.b64decode(answer["patch"]))
    assert first == {"op": "add", "path": "/spec/containers/0/env", "value": []}


def test_a_pod_that_has_everything_gets_no_patch() -> None:
    _, answer = ask("/mutate", review(pod(annotation="")))
    assert answer["allowed"]
    assert "patch" not in answer


NO_POD = {"metadata": {"labels": {"checkpoint-operator.dev/checkpoint": "run"}}, "spec": {}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"null",
        b'{"request": 7}',
        review({}),
        review(NO_POD),
        review(pod(containers=[])),
        review(pod(containers=[7])),
        review(pod(None)),
        review(pod(), namespace=""),
        review(pod(), namespace="../.."),
        {**review(pod()), "apiVersion": "admission.k8s.io/v1beta1"},
        {**review(pod()), "request": {"uid": 1, "namespace": "team", "object": pod()}},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/mutate", "/validate"])
def test_what_is_no_review_of_a_labelled_pod_is_refused_and_reads_nothing(path: str, body: object) -> None:
    status, answer = ask(path, body, never)
    assert (status, answer["text"].startswith("read the review: ")) == (400, True)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "A", "x" * 254, "%2e%2e", "a?watch=1"])
def test_a_label_that_names_no_object_reads_nothing(name: str) -> None:
    status, answer = ask("/mutate", review(pod(name)), never)
    assert (status, answer["allowed"], "patch" in answer) == (200, True, False)
    _, answer = ask("/validate", review(pod(name)), never)
    assert not answer["allowed"]


def test_a_review_that_is_too_large_is_refused() -> None:
    status, _ = ask("/mutate", b" " * (server.MOST_BYTES + 1), never)
    assert status == 413


def test_a_checkpoint_that_cannot_be_read_denies_the_pod_with_the_reason() -> None:
    async def broken(key: Key) -> dict[str, Any] | None:
        raise KubeError("read Checkpoint", str(key), "the API server answered 500", status=500)

    status, answer = ask("/mutate", review(pod()), broken)
    assert (status, answer["allowed"], answer["status"]["code"]) == (200, False, 503)
    assert 'Checkpoint "run" in namespace "team" could not be read: read Checkpoint' in answer["status"]["message"]
    assert answer["status"]["message"].endswith("Workload controllers retry automatically.")


def test_an_api_server_that_does_not_answer_is_waited_for_less_long_than_the_webhook_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 0.1)

    async def silent(_: Key) -> dict[str, Any] | None:
        await asyncio.sleep(60)
        return None

    _, answer = ask("/mutate", review(pod()), silent)
    assert (answer["allowed"], answer["status"]["code"]) == (False, 503)
    assert "no answer from the API server" in answer["status"]["message"]


@pytest.mark.parametrize(
    ("claimed", "reason", "injected"),
    [
        ("8a-1/team/run", "Configured", True),
        ("8a-1/team/run", "PrefixClaimed", False),
        ("8a-1/other/run", "Configured", False),
        ("", "Configured", False),
    ],
)
def test_without_a_cluster_id_pods_wait_for_the_claim(claimed: str, reason: str, injected: bool) -> None:
    """The identity then comes from the status, and is never that of another run, even one of the same name."""

    async def read(_: Key) -> dict[str, Any]:
        return checkpoint() | {"status": {"claimedBy": claimed, "conditions": [{"reason": reason}]}}

    _, answer = ask("/mutate", review(pod()), read, cluster="")
    assert ("patch" in answer) == injected
    if injected:
        patches = json.loads(base64.b64decode(answer["patch"]))
        assert patches[1]["value"] == {"name": "CHECKPOINT_RUN", "value": "8a-1/team/run"}
    _, answer = ask("/validate", review(pod()), read, cluster="")
    assert 'no Checkpoint "run" with a claimed prefix in namespace "team" yet' in answer["status"]["message"]


def test_a_replica_that_stops_sends_the_next_review_elsewhere() -> None:
    assert ask("/mutate", review(pod()), ready=True)[1]["connection"] != "close"
    assert ask("/mutate", review(pod()), ready=False)[1]["connection"] == "close"


def test_probes_are_answered() -> None:
    async def probe(ready: bool) -> list[int]:
        reviewer = Reviewer(Lookup(never, clock=lambda: 0.0), cluster_id="", health=Health(ready))
        async with TestClient(TestServer(reviewer.application())) as client:
            return [(await client.get(path)).status for path in ("/healthz", "/readyz")]

    assert asyncio.run(probe(True)) == [200, 200]
    assert asyncio.run(probe(False)) == [200, 503]
