"""The HTTPS server of the webhook: answers reviews and probes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from checkpoint_operator.gather.kube import KubeError
from checkpoint_operator.injection.certificates import KeyPair
from checkpoint_operator.injection.lookup import Lookup
from checkpoint_operator.injection.pods import Body, Library, Place, denial_of, label_of, patches_of, usable
from checkpoint_operator.injection.review import UNAVAILABLE, Review, ReviewError, admitted, denied

READ_SECONDS = 3.0
"""Most time to read a Checkpoint. The API server waits longer, so that it gets an answer that says what is wrong."""
KEEP_ALIVE_SECONDS = 300.0
"""Longer than API servers keep idle connections, which are therefore never closed while a review is on its way."""
MOST_BYTES = 8 * 1024 * 1024
"""Of a review. API servers do not store objects of more than 1.5 MiB."""

logger = logging.getLogger(__name__)


@dataclass
class Health:
    """Whether API servers should send reviews here."""

    ready: bool = False


class Reviewer:
    """Answers what API servers ask about labelled pods."""

    def __init__(self, lookup: Lookup, *, cluster_id: str, health: Health, library: Library | None = None) -> None:
        self._lookup = lookup
        self._cluster_id = cluster_id
        self._library = library
        self._health = health

    def application(self) -> web.Application:
        """Return the routes."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.add_routes(
            [
                web.post("/mutate", self._mutate),
                web.post("/validate", self._validate),
                web.get("/healthz", self._live),
                web.get("/readyz", self._ready),
            ]
        )
        return app

    async def _mutate(self, request: web.Request) -> web.Response:
        try:
            review = Review.parse(await request.read())
        except ReviewError as error:
            return web.Response(status=400, text=str(error))
        place = Place(review.namespace, self._cluster_id, self._library)
        key = review.key
        try:
            async with asyncio.timeout(READ_SECONDS):
                found = await self._lookup.find(key, lambda body: usable(body, place)) if key else None
        except (KubeError, TimeoutError) as error:
            cause = str(error) or f"no answer from the API server within {READ_SECONDS:.0f} s"
            logger.warning("a pod in %s was denied: %s", review.namespace, cause)
            reason = (
                f'Checkpoint "{label_of(review.pod)}" in namespace "{review.namespace}" could not be read: {cause}. '
                "Workload controllers retry automatically."
            )
            return self._answer(denied(review, reason, UNAVAILABLE))
        if found is None or not usable(found, place):
            # The pod stays as it is, so that its denial is the same, whether this webhook denies it or a policy.
            return self._answer(admitted(review))
        return self._answer(admitted(review, patches_of(review.pod, found, place)))

    async def _validate(self, request: web.Request) -> web.Response:
        try:
            review = Review.parse(await request.read())
        except ReviewError as error:
            return web.Response(status=400, text=str(error))
        reason = denial_of(review.pod, Place(review.namespace, self._cluster_id))
        return self._answer(denied(review, reason) if reason else admitted(review))

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(text="ok") if self._health.ready else web.Response(status=503, text="not ready")

    def _answer(self, body: Body) -> web.Response:
        response = web.json_response(body)
        if not self._health.ready:  # the process stops: the next review goes to another replica
            response.force_close()
        return response


class Listener:
    """A TLS server whose certificate can be replaced while it runs."""

    def __init__(self, app: web.Application, host: str, port: int) -> None:
        self._app = app
        self._address = host or None, port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)

    def use(self, pair: KeyPair) -> None:
        """Serve this certificate to each connection from now on.

        Raises:
            ssl.SSLError: It is none, or the key belongs to another one.
        """
        # The ssl module reads files only.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "tls.pem")
            with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(pair.certificate + b"\n" + pair.key)
            self._context.load_cert_chain(path)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Accept connections while the context is open; then finish the reviews that have begun."""
        runner = web.AppRunner(
            self._app, handle_signals=False, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS, shutdown_timeout=5.0
        )
        await runner.setup()
        try:
            host, port = self._address
            await web.TCPSite(runner, host, port, ssl_context=self._context).start()
            yield
        finally:
            await runner.cleanup()
