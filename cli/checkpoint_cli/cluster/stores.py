"""Opens the store of a Checkpoint as its pods do: at the place and with the Secret that its spec names."""

from __future__ import annotations

import base64
import binascii

import msgspec

from checkpoint_cli.cluster.kubectl import Body, Kubectl
from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_sidecar.core.api import Storage
from checkpoint_sidecar.core.location import check_url
from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings


def settings_of(kubectl: Kubectl, checkpoint: Body) -> StoreSettings:
    """Return how to open the store of a Checkpoint; reads its Secret.

    Raises:
        CommandRefusedError: The Secret cannot be read, or the own identity would go to an endpoint of the Checkpoint.
        ConfigurationError: The URL cannot work.
    """
    namespace, name = checkpoint["metadata"]["namespace"], checkpoint["metadata"]["name"]
    subject = f"{namespace}/{name}"
    try:
        storage = msgspec.convert(checkpoint["spec"]["storage"], Storage)
    except (KeyError, msgspec.ValidationError) as error:
        raise CommandRefusedError(
            "read spec.storage of Checkpoint",
            subject,
            str(error),
            "Upgrade this program.",
            status=ExitStatus.UNREADABLE,
        ) from error
    if storage.credentials_secret is None and storage.endpoint:
        # Anyone who may write a Checkpoint could have this identity sent to a server of their choice.
        raise CommandRefusedError(
            "open the store of Checkpoint",
            subject,
            "it names an endpoint and no Secret, and your own identity is not sent to an endpoint of a Checkpoint",
            f"If you trust the endpoint, run: checkpoint report {storage.url} --endpoint {storage.endpoint}",
            status=ExitStatus.REFUSED,
        )
    secret = storage.credentials_secret
    return StoreSettings(
        url=check_url(storage.url),
        endpoint=storage.endpoint,
        region=storage.region,
        addressing_style=storage.addressing_style,
        credentials=_credentials(kubectl, namespace, secret.name) if secret else AMBIENT,
        requester_pays=bool(storage.requester_pays),
    )


def _credentials(kubectl: Kubectl, namespace: str, name: str) -> Credentials:
    subject = f"{namespace}/{name}"
    secret = kubectl.get("read Secret", subject, f"/api/v1/namespaces/{namespace}/secrets/{name}")
    try:
        data = secret.get("data") or {}
        return Credentials.of({key: base64.b64decode(value).decode() for key, value in data.items()})
    except (binascii.Error, UnicodeDecodeError) as error:
        cause = "a value is not text"
        raise CommandRefusedError("read Secret", subject, cause, status=ExitStatus.UNREADABLE) from error
