"""Keeps the webhook's certificate usable: makes it and gives API servers its authority, or follows a folder."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from checkpoint_operator.gather.kube import Kube, WebhookKind
from checkpoint_operator.injection.certificates import KeyPair, Stored, advanced

_TRIES = 5

logger = logging.getLogger(__name__)


class TrustError(Exception):
    """No certificate can be served, or the API servers would not trust it. The message says why."""


class Source(Protocol):
    """Where the pair to serve comes from."""

    async def refresh(self) -> KeyPair:
        """Return the pair to serve from now on, once the API servers trust it.

        Raises:
            TrustError: There is none yet.
            KubeError: The API server refused.
        """


@dataclass(frozen=True, slots=True)
class CertificateFolder:
    """The files of a mounted Secret, which cert-manager renews; API servers get the authority from its cainjector."""

    path: Path

    async def refresh(self) -> KeyPair:
        """Read the files."""
        try:
            return KeyPair((self.path / "tls.crt").read_bytes(), (self.path / "tls.key").read_bytes())
        except OSError as error:
            raise TrustError(f"read the certificate in {self.path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class SelfMade:
    """A Secret that the replicas share, and the webhook configurations that carry its authorities.

    Replicas do not choose a leader. Each write names the version of the object that it was computed from, so of two
    that race one fails, reads again, and finds nothing left to do.

    Attributes:
        secret: Namespace and name of the Secret, which must exist.
        configurations: Kind and name of each webhook configuration.
        host: Name by which the API servers call the webhook.
        lifetime: Of a certificate.
        clock: Returns the time, with a time zone.
    """

    kube: Kube
    secret: tuple[str, str]
    configurations: Sequence[tuple[WebhookKind, str]]
    host: str
    lifetime: dt.timedelta
    clock: Callable[[], dt.datetime]

    async def refresh(self) -> KeyPair:
        """Advance the Secret if that is due, then write its authorities where they are missing."""
        for _ in range(_TRIES):
            pair = await self._try()
            if pair is not None:
                return pair
        raise TrustError("write the certificate: other replicas changed it at the same time, again and again")

    async def _try(self) -> KeyPair | None:
        # The configurations are read before the Secret: if they are unchanged when they are written, then no other
        # replica has written what a later version of the Secret says.
        found = [(kind, name, await self.kube.webhooks(kind, name)) for kind, name in self.configurations]
        stored = await self._advance()
        if stored is None:
            return None
        assert stored.current is not None
        wanted = base64.b64encode(stored.authorities).decode()
        for kind, name, configuration in found:
            if configuration is None:
                raise TrustError(f"read {kind} {name}: it does not exist; the chart creates it")
            version, bundles = configuration
            wrong = {webhook: wanted for webhook, bundle in bundles.items() if bundle != wanted}
            if wrong and not await self.kube.write_ca_bundles(kind, name, version, wrong):
                return None
            if wrong:
                logger.info("wrote the authorities of the webhook's certificate into %s %s", kind, name)
        return stored.current

    async def _advance(self) -> Stored | None:
        """What the Secret holds by now; None if another replica was faster."""
        secret = await self.kube.secret_data(*self.secret)
        if secret is None:
            raise TrustError(f"read Secret {'/'.join(self.secret)}: it does not exist; the chart creates it")
        version, data = secret
        stored = Stored.parse(data)
        wanted = advanced(stored, self.host, self.lifetime, self.clock())
        if wanted == stored:
            return stored
        if not await self.kube.write_secret_data(*self.secret, version, wanted.data()):
            return None
        logger.info("renewed the certificates of the webhook in Secret %s", "/".join(self.secret))
        return wanted


async def follow(
    source: Source, serve: Callable[[KeyPair], None], *, seconds: float, errors: Sequence[type[Exception]]
) -> None:
    """Refresh until cancelled, and serve each new pair. An expected error is logged, and the last pair stays in use."""
    served: KeyPair | None = None
    while True:
        try:
            pair = await source.refresh()
            if pair != served:
                serve(pair)
                served = pair
        except tuple(errors) as error:
            logger.warning("the webhook's certificate could not be refreshed: %s", error)
        await asyncio.sleep(seconds if served else min(seconds, 1.0))
