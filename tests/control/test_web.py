"""Probes and scrapes are answered over both families, and no client holds a connection for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from aiohttp import ClientSession, web

from checkpoint_operator.process import web as served
from localcluster import network

FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


async def answer(_: web.Request) -> web.Response:
    return web.Response(text="well")


def available(address: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(FAMILIES[address]) as probe:
        probe.bind((address, 0))
        return True
    return False


@pytest.mark.parametrize("address", FAMILIES)
def test_without_a_host_both_families_are_answered(address: str) -> None:
    if not available(address):
        pytest.skip(f"this machine does not have {address}")
    port = next(network.free_ports())

    async def ask() -> str:
        async with served.serving("", port, "/healthz", answer), ClientSession() as client:
            host = f"[{address}]" if ":" in address else address
            return await (await client.get(f"http://{host}:{port}/healthz")).text()

    assert asyncio.run(ask()) == "well"


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], ids=len)
def test_a_client_that_stays_is_sent_away(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(served, "CONNECTION_SECONDS", 0.2)
    port = next(network.free_ports())

    async def stay() -> None:
        async with served.serving("127.0.0.1", port, "/", answer):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(-1), timeout=20)
            writer.close()

    asyncio.run(stay())


def test_a_crowd_of_clients_that_stay_keeps_no_probe_out() -> None:
    port = next(network.free_ports())

    async def crowd() -> str:
        async with served.serving("127.0.0.1", port, "/healthz", answer), ClientSession() as client:
            staying = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3 * served.MOST_CONNECTIONS)]
            text = await (await client.get(f"http://127.0.0.1:{port}/healthz")).text()
            reader, _ = staying[0]
            assert await asyncio.wait_for(reader.read(-1), timeout=20) == b"", "the oldest made room"
            for _, writer in staying:
                writer.close()
            return text

    assert asyncio.run(crowd()) == "well"
