"""Names in a run's log: the owner of the run, and the pods of its attempts."""

from __future__ import annotations

from typing import Annotated

import msgspec

OwnerPart = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^/\s]+\Z")]
OwnerName = Annotated[str, msgspec.Meta(min_length=1, max_length=253, pattern=r"^[^/\s]+\Z")]

_DELETED = ":deleted"


class Owner(msgspec.Struct, frozen=True, rename="camel"):
    """The owner of a prefix. ``str(owner)`` is the form shown in ``status.claimedBy``.

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
        """The owner of this owner's run once its deletion has begun. A Checkpoint cannot have such a name."""
        return Owner(self.cluster, self.namespace, f"{self.name}{_DELETED}")

    @property
    def is_deleted(self) -> bool:
        return self.name.endswith(_DELETED)

    @classmethod
    def local(cls, name: str, url: str) -> Owner:
        """Return the owner of a run outside Kubernetes; without a name, it has that of the URL's last part."""
        return cls("local", "local", name or url.rstrip("/").rpartition("/")[2])

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Parse the result of ``str``.

        Raises:
            ValueError: It does not have three non-empty parts.
        """
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{text!r} is not <cluster>/<namespace>/<name>")
        return cls(*parts)


class PodIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """One pod of an attempt; outside Kubernetes ``name`` is ``<host>:<pid>`` and ``uid`` is random per process."""

    name: Annotated[str, msgspec.Meta(max_length=253)]
    uid: Annotated[str, msgspec.Meta(max_length=64)]
