"""Reads an AdmissionReview and writes its answer. Pure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from checkpoint_operator.injection.pods import Body, Patch, label_of
from checkpoint_operator.model.observed import Key

API_VERSION = "admission.k8s.io/v1"
FORBIDDEN = 403
UNAVAILABLE = 503

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""Of an object or a namespace. What is none must not become a part of a path at the API server."""


class ReviewError(Exception):
    """The body of a request is not a review of a labelled pod. The message is for the caller."""


@dataclass(frozen=True, slots=True)
class Review:
    """A question of the API server: may this pod be created?

    Attributes:
        uid: Of the question; the answer repeats it.
        namespace: Of the pod, which does not name it itself yet.
        pod: As it would be created.
    """

    uid: str
    namespace: str
    pod: dict[str, Any]

    @classmethod
    def parse(cls, text: bytes) -> Review:
        """Read the body of a request.

        Raises:
            ReviewError: It is something else.
        """
        try:
            body = json.loads(text)
            request = body["request"]
            review = cls(request["uid"], request["namespace"], request["object"])
            containers = [*review.pod["spec"]["containers"], *review.pod["spec"].get("initContainers", ())]
            names = [container["name"] for container in containers]
            label = label_of(review.pod)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ReviewError(f"read the review: it is none of a pod ({type(error).__name__})") from error
        if body.get("apiVersion") != API_VERSION or not names or not isinstance(review.uid, str):
            raise ReviewError(f"read the review: it is none of a pod in {API_VERSION}")
        if not label or not isinstance(review.namespace, str) or not _NAME.fullmatch(review.namespace):
            raise ReviewError("read the review: the pod has no namespace or no label of a Checkpoint")
        return review

    @property
    def key(self) -> Key | None:
        """The Checkpoint of the pod's label; None if no object can have that name."""
        name = label_of(self.pod)
        return Key(self.namespace, name) if _NAME.fullmatch(name) else None


def admitted(review: Review, patches: Sequence[Patch] = ()) -> Body:
    """Return the answer that admits a pod, changed by these operations."""
    response: dict[str, Any] = {"uid": review.uid, "allowed": True}
    if patches:
        encoded = base64.b64encode(json.dumps(list(patches)).encode()).decode()
        response |= {"patchType": "JSONPatch", "patch": encoded}
    return _answer(response)


def denied(review: Review, reason: str, code: int = FORBIDDEN) -> Body:
    """Return the answer that denies a pod."""
    return _answer({"uid": review.uid, "allowed": False, "status": {"message": reason, "code": code}})


def _answer(response: Body) -> Body:
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}
