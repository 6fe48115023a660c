"""Types of the API about a run that begins at a snapshot of another one. ``core.api`` has the rest."""

from __future__ import annotations

from typing import Literal

import msgspec

from checkpoint_sidecar.core.environment import AddressingStyle

WarmStartState = Literal["Pending", "Used", "NotUsed"]


class LocalReference(msgspec.Struct, frozen=True, rename="camel"):
    """An object in the same namespace; other namespaces cannot be named."""

    name: str


class StartSource(msgspec.Struct, frozen=True, rename="camel"):
    """The snapshot of another run at which a new run begins: of a Checkpoint, or at a URL.

    Attributes:
        checkpoint: ``<name>``, ``<name>@<selector>`` or ``<namespace>/<name>@<selector>``.
        url: ``<url>`` or ``<url>@<selector>``.
        part: Name of the only object to load; None for all.
        endpoint, region, addressing_style: Access to ``url``, if that differs from the run's own.
        credentials_secret: For reading the other run; None for the run's own credentials.
    """

    checkpoint: str | None = None
    url: str | None = None
    part: str | None = None
    endpoint: str | None = None
    region: str | None = None
    addressing_style: AddressingStyle | None = None
    credentials_secret: LocalReference | None = None


class Grant(msgspec.Struct, frozen=True, rename="camel"):
    """Runs of another namespace may begin at these snapshots.

    Attributes:
        snapshots: Each ``latest``, ``best``, ``held``, ``all``, a step or an id.
    """

    namespace: str
    snapshots: tuple[str, ...]


class WarmStartStatus(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Where the run begins or began, if that is a snapshot of another run.

    Attributes:
        state: ``Pending`` until the first commit; then whether that descends from the snapshot.
        checkpoint: ``<namespace>/<name>`` of the other run, if the spec named it so.
        attempt: The attempt that began there.
        endpoint, region, addressing_style, credentials_secret: Access to the other run for pods, if it differs from
            the access to their own.
    """

    state: WarmStartState
    url: str | None = None
    snapshot: str | None = None
    step: int | None = None
    part: str | None = None
    checkpoint: str | None = None
    attempt: int | None = None
    endpoint: str | None = None
    region: str | None = None
    addressing_style: AddressingStyle | None = None
    credentials_secret: LocalReference | None = None
