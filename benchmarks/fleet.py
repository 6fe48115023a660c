"""Many training runs behind one S3 server: their logs and snapshots are in memory, written by the library's own code.

Every run is played by a ``Trainer`` on a ``MemoryStore``; the operator under test reaches the same store by HTTP. So
the server costs little, forgets nothing, and knows how often it was asked.

    POST /-/commit/NAMESPACE/NAME   the run commits its next snapshot; answers with its id
    GET /-/requests                 how many requests of each method were answered so far
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from email.utils import format_datetime
from typing import Any
from xml.sax.saxutils import escape, unescape

from checkpoint_sidecar.core.errors import ObjectExistsError, ObjectNotFoundError
from checkpoint_sidecar.core.log import Owner
from doubles.memory import MemoryStore, utc_now
from sink_s3 import Request, xml
from support.trainers import Trainer

BUCKET = "fleet"
BETWEEN_COMMITS = dt.timedelta(minutes=10)
AGE = dt.timedelta(hours=1)
"""Since the last of the commits that were there before: these runs are idle."""

Answer = tuple[int, bytes, dict[str, str]]


class FleetRun:
    """One run: its store, and its trainer.

    Args:
        owner: The Checkpoint that it belongs to.
        snapshots: How many it has when the benchmark begins, all in the past.
    """

    def __init__(self, owner: Owner, snapshots: int) -> None:
        self._past: dt.timedelta | None = AGE + snapshots * BETWEEN_COMMITS
        url = f"s3://{BUCKET}/{owner.namespace}/{owner.name}"
        self.store = MemoryStore(url, clock=lambda: utc_now() - (self._past or dt.timedelta()))
        self._trainer = Trainer(self.store, owner).start()
        self._steps = itertools.count(500, 500)
        for _ in range(snapshots):
            self.commit()
            self._past -= BETWEEN_COMMITS
        self._past = None
        self._uploads: dict[str, dict[int, bytes]] = {}

    def commit(self) -> str:
        return self._trainer.commit(next(self._steps)).id

    def answer(self, request: Request, key: str, body: bytes) -> Answer:
        """As S3 would; ``key`` is below the run's prefix."""
        query = request.query
        if "delete" in query or "uploads" in query or "uploadId" in query:
            return self._answer_special(request, key, body)
        if request.method == "PUT":
            try:
                write = self.store.put_if_absent if "if-none-match" in request.headers else self.store.put
                write(key, body)
            except ObjectExistsError:
                return 412, xml("Error", "<Code>PreconditionFailed</Code>"), {}
            return 200, b"", {"ETag": '"whole"'}
        if request.method == "DELETE":
            self.store.delete([key])
            return 204, b"", {}
        return self._read(request, key)

    def list(self, prefix: str, after: str, root: str) -> Answer:
        """A complete listing; S3 names objects from the root of the bucket."""
        found = "".join(
            f"<Contents><Key>{escape(root + info.key)}</Key><Size>{info.size}</Size>"
            f'<LastModified>{info.modified:%Y-%m-%dT%H:%M:%S.000Z}</LastModified><ETag>"whole"</ETag></Contents>'
            for info in self.store.list(prefix, after=after)
        )
        return 200, xml("ListBucketResult", f"<IsTruncated>false</IsTruncated>{found}"), {}

    def _read(self, request: Request, key: str) -> Answer:
        try:
            stored = self.store.get(key, max_bytes=1 << 30)
        except ObjectNotFoundError:
            return 404, b"" if request.method == "HEAD" else xml("Error", "<Code>NoSuchKey</Code>"), {}
        headers = {"Last-Modified": format_datetime(stored.info.modified, usegmt=True), "ETag": '"whole"'}
        data = bytes(stored.data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted is None:
            return 200, data, headers
        start, stop = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        if start >= len(data):
            return 416, xml("Error", "<Code>InvalidRange</Code>"), {}
        return 206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

    def _answer_special(self, request: Request, key: str, body: bytes) -> Answer:
        if "delete" in request.query:
            root = self.store.url.removeprefix(f"s3://{BUCKET}/") + "/"
            keys = [
                unescape(each, {"&quot;": '"', "&apos;": "'"}) for each in re.findall("<Key>(.*?)</Key>", body.decode())
            ]
            self.store.delete([each.removeprefix(root) for each in keys])
            deleted = "".join(f"<Deleted><Key>{escape(each)}</Key></Deleted>" for each in keys)
            return 200, xml("DeleteResult", deleted), {}
        if "uploads" in request.query and request.method == "GET":
            return 200, xml("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>"), {}
        if "uploads" in request.query:
            upload = str(len(self._uploads))
            self._uploads[upload] = {}
            return 200, xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>"), {}
        parts = self._uploads[request.query["uploadId"][0]]
        if request.method == "PUT":
            parts[int(request.query["partNumber"][0])] = body
        elif request.method == "POST":
            self.store.put(key, b"".join(parts[number] for number in sorted(parts)))
            return 200, xml("CompleteMultipartUploadResult", '<ETag>"whole"</ETag>'), {}
        else:
            parts.clear()
        return 200 if request.method == "PUT" else 204, b"", {"ETag": '"part"'}


class Fleet:
    """Answers for all runs; one event loop, no lock."""

    def __init__(self, cluster: str, runs: list[tuple[str, str]], snapshots: int) -> None:
        self._runs = {(place, name): FleetRun(Owner(cluster, place, name), snapshots) for place, name in runs}
        self._answered: Counter[str] = Counter()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                request = Request.parse(head.removesuffix("\r\n\r\n"))
                body = await reader.readexactly(request.body_bytes)
                status, data, headers = self._answer(request, body)
                lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(data)}"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + (b"" if request.method == "HEAD" else data))
        writer.close()

    def _answer(self, request: Request, body: bytes) -> Answer:
        if request.bucket == "-":
            return 200, json.dumps(self._aside(request.key)).encode(), {}
        self._answered[request.method] += 1
        inside = request.key or request.query.get("prefix", [""])[0]
        if "delete" in request.query:
            inside = re.findall("<Key>(.*?)</Key>", body.decode())[0]
        place, name, *rest = inside.split("/", 2)
        key, root = "".join(rest), f"{place}/{name}/"
        if request.method == "GET" and not request.key and "uploads" not in request.query:
            after = request.query.get("start-after", [""])[0].removeprefix(root)
            return self._runs[place, name].list(key, after, root)
        return self._runs[place, name].answer(request, key, body)

    def _aside(self, wanted: str) -> Any:
        if wanted == "requests":
            return dict(self._answered)
        _, place, name = wanted.split("/")
        return self._runs[place, name].commit()


@contextlib.contextmanager
def running(cluster: str, runs: list[tuple[str, str]], snapshots: int) -> Iterator[str]:
    """A fleet in a process of its own; yields its URL once all runs are written."""
    command = [sys.executable, __file__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"cluster": cluster, "runs": runs, "snapshots": snapshots}) + "\n")
        process.stdin.flush()
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


def requests_of(endpoint: str) -> Counter[str]:
    """How many requests a fleet has answered, by method."""
    with urllib.request.urlopen(f"{endpoint}/-/requests") as answer:
        return Counter(json.load(answer))


def commit(endpoint: str, namespace: str, name: str) -> str:
    """Make a run commit; returns the snapshot's id."""
    with urllib.request.urlopen(f"{endpoint}/-/commit/{namespace}/{name}", data=b"") as answer:
        identifier: str = json.load(answer)
        return identifier


async def _serve() -> None:
    wanted = json.loads(sys.stdin.readline())
    fleet = Fleet(wanted["cluster"], [(place, name) for place, name in wanted["runs"]], wanted["snapshots"])
    server = await asyncio.start_server(fleet.converse, "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve())
