"""Serves the pages on loopback, read-only: no request changes anything.

Other programs and web pages on this machine can reach loopback, too. So:

- Every address begins with a secret that is new for each start; without it the answer is 404.
- The ``Host`` of a request must be this server's own. A web page whose name suddenly points to 127.0.0.1 (DNS
  rebinding) sends its own name.
- Only GET and HEAD are answered. A run is looked up among those that were found, so an address names no other store.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from checkpoint_cli.exits import CommandRefusedError, ExitStatus
from checkpoint_cli.output import write
from checkpoint_cli.report.draw.page import policy_of_pages
from checkpoint_cli.report.view import RunReport
from checkpoint_cli.ui.pages import Links, failure_page, list_page, run_page, snapshot_page
from checkpoint_cli.ui.runs import LiveRuns, SearchPlace
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.manifest import Manifest

LOOPBACK = "127.0.0.1"
_READ_AT_ONCE = 8
_MAX_QUERY = 4096


class PageServer(ThreadingHTTPServer):
    """The server of one start.

    Args:
        port: 0 for one that is free.
    """

    daemon_threads = True

    def __init__(self, runs: LiveRuns, *, port: int = 0) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.runs = runs
        self.secret = secrets.token_urlsafe(16)
        self.hosts = frozenset(f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost"))
        base = f"/{self.secret}"

        def address(page: str, **query: str) -> str:
            return f"{base}/{page}?{urlencode(query, quote_via=quote)}"

        self.links = Links(
            home=f"{base}/",
            run=lambda url: address("run", url=url),
            version=lambda url: address("version", url=url),
            snapshot=lambda url, identifier: address("snapshot", url=url, id=identifier),
        )

    @property
    def address(self) -> str:
        """The URL of the list of runs, with the secret."""
        return f"http://{LOOPBACK}:{self.server_port}{self.links.home}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about a browser that has gone; anything else is a defect, and is shown as such."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def serve(places: Callable[[], Iterable[SearchPlace]], *, port: int) -> None:
    """Print the address, and serve until Ctrl-C.

    Raises:
        CommandRefusedError: The port is taken.
    """
    try:
        server = PageServer(LiveRuns(places), port=port)
    except OSError as error:
        cause, hint = error.strerror or str(error), "Choose another --port."
        raise CommandRefusedError("listen on", f"{LOOPBACK}:{port}", cause, hint, status=ExitStatus.USAGE) from error
    with server:
        write(f"Serving at {server.address} until Ctrl-C")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            write()


class _NoPageError(Exception):
    """No page has this address."""


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version = "checkpoint"
    sys_version = ""
    timeout = 30
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in the base class
        """Keep the terminal quiet: addresses hold the secret."""

    def _respond(self, *, with_body: bool) -> None:
        status, kind, text = self._answer()
        body = text.encode()
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{policy_of_pages(live=True)}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _answer(self) -> tuple[HTTPStatus, str, str]:
        """Return status, media type and body for this request."""
        if self.headers.get("Host") not in self.server.hosts:
            return HTTPStatus.FORBIDDEN, "text/plain", "This server answers to its own address only.\n"
        target = urlsplit(self.path)
        _, secret, page = (*target.path.split("/", 2), "", "")[:3]
        if not secrets.compare_digest(secret.encode(), self.server.secret.encode()) or len(target.query) > _MAX_QUERY:
            return HTTPStatus.NOT_FOUND, "text/plain", "Not found. Open the address that `checkpoint ui` printed.\n"
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        try:
            kind = "text/plain" if page == "version" else "text/html"
            return HTTPStatus.OK, kind, self._page(page, query)
        except _NoPageError:
            title = "Not found"
            message = "There is no such run or snapshot. It may have been deleted since the list was made."
            return HTTPStatus.NOT_FOUND, "text/html", failure_page(title, message, self.server.links)
        except CheckpointError as error:
            return HTTPStatus.BAD_GATEWAY, "text/html", failure_page("Cannot read it", str(error), self.server.links)

    def _page(self, page: str, query: dict[str, str]) -> str:
        match page:
            case "":
                return self._list()
            case "run":
                return self._run(query)
            case "snapshot":
                return self._snapshot(query)
            case "version":
                return self._version(query)
        raise _NoPageError

    def _version(self, query: dict[str, str]) -> str:
        version = self.server.runs.version(query.get("url", ""))
        if version is None:
            raise _NoPageError
        return version

    def _list(self) -> str:
        urls, problems = self.server.runs.search()
        with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="read-runs") as pool:
            reports = dict(zip(urls, pool.map(self._report_or_problem, urls), strict=True))
        return list_page(reports, problems, self.server.links)

    def _report_or_problem(self, url: str) -> RunReport | str:
        try:
            return self._report(url)[0]
        except CheckpointError as error:
            return str(error)

    def _report(self, url: str) -> tuple[RunReport, str]:
        found = self.server.runs.report(url)
        if found is None:
            raise _NoPageError
        return found

    def _run(self, query: dict[str, str]) -> str:
        report, version = self._report(query.get("url", ""))
        return run_page(report, version, self.server.links)

    def _snapshot(self, query: dict[str, str]) -> str:
        url, identifier = query.get("url", ""), query.get("id", "")
        report, _ = self._report(url)
        life = next((each for each in report.history.lives if each.snapshot.id == identifier), None)
        if life is None:
            raise _NoPageError
        manifest: Manifest | str
        try:
            manifest = self.server.runs.manifest(url, life.snapshot) or "Its data does not exist any more."
        except CheckpointError as error:
            manifest = str(error)
        return snapshot_page(report, life, manifest, self.server.links)
