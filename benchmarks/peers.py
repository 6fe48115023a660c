"""Clients that move bytes, which other savers and loaders build on: the same bytes as one safetensors file per rank.

They move parts and ranges of the sizes that the engine uses, without signing bodies, over at most as many connections.
They compute no checksums, commit nothing, and know no resharding: whatever a snapshot is beyond its bytes is left out.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import llama
from llama import State, buffers
from sockets import RANGE_BYTES, parts
from systems import REGION, Server

_PART_BYTES = 32 * 1024 * 1024
_CONNECTIONS = 16

Put = Callable[[str, Iterable[memoryview]], None]
"""Writes one object, by its URL."""
Get = Callable[[str, State], None]
"""Loads a file into tensors."""
GetRange = Callable[[str, int, int], memoryview]
"""Reads some bytes at an offset."""


@dataclass(frozen=True)
class SafetensorsFile:
    """A way to write such a file and a way to read it."""

    rank: int
    put: Put
    get: Get

    def save(self, state: State, url: str) -> None:
        self.put(self._file(url), _contents(state))

    save_for_loading = save

    def load(self, state: State, url: str) -> None:
        self.get(self._file(url), state)

    def _file(self, url: str) -> str:
        return f"{url}/{self.rank}.safetensors"


def obstore(server: Server, *, rank: int) -> SafetensorsFile:
    import obstore as client
    from obstore.store import S3Store

    def store(url: str) -> tuple[S3Store, str]:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return S3Store(
            bucket,
            endpoint=server.endpoint,
            region=REGION,
            access_key_id=server.access_key,
            secret_access_key=server.secret_key,
            virtual_hosted_style_request=False,
            unsigned_payload=True,
            client_options={"allow_http": True},
        ), key

    def put(url: str, contents: Iterable[memoryview]) -> None:
        at, key = store(url)
        client.put(at, key, iter(contents), chunk_size=_PART_BYTES, max_concurrency=_CONNECTIONS)

    def get(url: str, state: State) -> None:
        at, key = store(url)
        _get_ranges(lambda start, size: memoryview(client.get_range(at, key, start=start, length=size)), state)

    return SafetensorsFile(rank, put, get)


def s3dlio(server: Server, *, rank: int) -> SafetensorsFile:
    os.environ |= _environment(server) | {"S3DLIO_UNSIGNED_PAYLOAD": "1"}
    import s3dlio as client

    def put(url: str, contents: Iterable[memoryview]) -> None:
        writer = client.MultipartUploadWriter.from_uri(url, part_size=_PART_BYTES, max_in_flight=_CONNECTIONS)
        for content in contents:
            writer.write(content)
        writer.close()

    def get(url: str, state: State) -> None:
        _get_ranges(lambda start, size: memoryview(client.get_range(url, start, size)), state)

    return SafetensorsFile(rank, put, get)


def runai_model_streamer(server: Server, *, rank: int) -> SafetensorsFile:
    """It only loads. What it loads is written with a plain PUT."""
    os.environ |= _environment(server)
    os.environ |= {"RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0", "RUNAI_STREAMER_LOG_LEVEL": "WARNING"}
    from runai_model_streamer import SafetensorsStreamer

    def put(url: str, contents: Iterable[memoryview]) -> None:
        body = list(contents)
        connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc)
        headers = {"Content-Length": str(sum(map(len, body)))}
        connection.request("PUT", f"/{url.removeprefix('s3://')}", iter(body), headers)
        assert connection.getresponse().status == http.HTTPStatus.OK
        connection.close()

    def get(url: str, state: State) -> None:
        with SafetensorsStreamer() as streamer:
            # Views into its buffers are enough: the model has memory of its own.
            streamer.stream_file(url, owned=False)
            for name, tensor in streamer.get_tensors():
                llama.local(state[name]).copy_(tensor)

    return SafetensorsFile(rank, put, get)


def _environment(server: Server) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }


def _get_ranges(get_range: Callable[[int, int], memoryview], state: State) -> None:
    """Each client returns memory of its own, from which the tensors are filled."""
    first = len(_header(state))

    def fill(numbered: tuple[int, list[memoryview]]) -> None:
        number, pieces = numbered
        received = get_range(first + number * RANGE_BYTES, sum(map(len, pieces)))
        for piece in pieces:
            piece[:], received = received[: len(piece)], received[len(piece) :]

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for _ in pool.map(fill, enumerate(parts(buffers(state), RANGE_BYTES))):
            pass


def _contents(state: State) -> Iterator[memoryview]:
    yield memoryview(_header(state))
    yield from buffers(state)


def _header(state: State) -> bytes:
    described, end = {}, 0
    for name, tensor in state.items():
        start, end = end, end + llama.local(tensor).nbytes
        described[name] = {"dtype": "BF16", "shape": list(llama.local(tensor).shape), "data_offsets": [start, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
