"""The HTTP servers of the process, for probes and scrapes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

MOST_CONNECTIONS = 64
"""Most connections at a time. One more closes the oldest, so that a probe gets through a crowd."""

CONNECTION_SECONDS = 30.0
"""A connection is closed after this time, whatever its client does."""


@contextlib.asynccontextmanager
async def serving(host: str, port: int, path: str, answer: Answer) -> AsyncIterator[None]:
    """Answer GET requests while the context is open.

    Args:
        host: Empty for all addresses, over IPv4 and over IPv6, as far as the machine has them.
        path: A pattern of aiohttp's.

    Raises:
        OSError: The address is taken, or the machine does not have it.
    """
    app = web.Application()
    app.add_routes([web.get(path, answer)])
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    loop = asyncio.get_running_loop()
    accepted: deque[web.RequestHandler] = deque()

    def accept() -> asyncio.Protocol:
        assert runner.server is not None
        connection = runner.server()
        loop.call_later(CONNECTION_SECONDS, connection.force_close)
        accepted.append(connection)
        if len(accepted) > MOST_CONNECTIONS:
            accepted.popleft().force_close()
        return connection

    try:
        server = await loop.create_server(accept, host or None, port)
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()
