"""Resumable uploads as Google documents them: fake-gcs-server takes the question how much is stored for the end."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

from crc32c import crc32c

from doubles.proxies import QuietHandler, listening

_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")


@contextlib.contextmanager
def resumable_uploads(*, keeps_at_most: int = 1 << 40) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Its URL, and the objects that were published.

    Args:
        keeps_at_most: How much of one request is stored: Google may store less than it was sent.
    """
    objects: dict[str, bytes] = {}
    begun: dict[str, bytearray] = {}

    class Handler(QuietHandler):
        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            name = query.get("name", "")
            if self.command == "POST":
                upload = f"upload-{len(begun)}"
                begun[upload] = bytearray()
                self.answer(200, {"Location": f"http://elsewhere.invalid/upload?upload_id={upload}"})
            elif self.command == "PUT":
                self.store(name, begun[query["upload_id"]], body)
            elif self.command == "DELETE":
                self.answer(499, {})
            else:
                self.describe()

        def store(self, name: str, stored: bytearray, body: bytes) -> None:
            match = _RANGE.fullmatch(self.headers["Content-Range"])
            assert match, self.headers["Content-Range"]
            if match[1]:
                start, end = int(match[1]), int(match[2]) + 1
                assert end - start == len(body)
                if start != len(stored):
                    self.answer(416, {})
                    return
                stored += body[:keeps_at_most]
            if len(stored) < int(match[3]):
                self.answer(308, {"Range": f"bytes=0-{len(stored) - 1}"} if stored else {})
                return
            objects[name] = bytes(stored)
            sum_ = base64.b64encode(crc32c(objects[name]).to_bytes(4, "big")).decode()
            self.answer(200, {}, json.dumps({"crc32c": sum_}).encode())

        def describe(self) -> None:
            found = objects.get(urlsplit(self.path).path.removeprefix("/bucket/"))
            size = str(len(found or b""))
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", size)
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()

        def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with listening(Handler) as url:
        yield url, objects
