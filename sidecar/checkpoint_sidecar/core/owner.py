"""Names in a run's log: the owner of the run, and the pods of its attempts."""

from __future__ import annotations

from typing import Annotated

import msgspec

OwnerPart = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^/\s]+\Z")]
OwnerName = Annotated[str, msgspec.Meta(min_length=1, max_length=253, pattern=r"^[^/\s]+\Z")]

_DELETED = ":deleted"


class Owner(msgspec.Struct, frozen=True, rename="camel"):
    """Who a prefix belongs to. ``str(owner)`` is the form shown in ``status.claimedBy``.

    Attributes:
        cluster: UID of the namespace kube-system, or ``local`` outside Kubernetes.
        namespace: Namespace of the Checkpoint, or ``local``.
        name: Name of the Checkpoint, or of the run outside Kubernetes.
    """

    cluster: OwnerPart
    namespace: OwnerPart
    name: OwnerName

    def __str__(self) -> str:
        return f"{self.cluster}/{self.namespace}/{self.name}"

    @property
    def deleted(self) -> Owner:
        """The owner of a run of this owner once its deletion has begun. No Checkpoint can have such a name."""
        return Owner(self.cluster, self.namespace, f"{self.name}{_DELETED}")

    @property
    def is_deleted(self) -> bool:
        return self.name.endswith(_DELETED)

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Inverse of ``str``.

        Raises:
            ValueError: Not three non-empty parts.
        """
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{text!r} is not <cluster>/<namespace>/<name>")
        return cls(*parts)


class PodIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """One pod of an attempt; outside Kubernetes ``name`` is ``<host>:<pid>`` and ``uid`` is random per process."""

    name: Annotated[str, msgspec.Meta(max_length=253)]
    uid: Annotated[str, msgspec.Meta(max_length=64)]
