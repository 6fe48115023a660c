"""``ui``: pages on loopback, from the list to a run to a snapshot, that change nothing and need the printed address."""

from __future__ import annotations

import datetime as dt
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from checkpoint_cli.ui.runs import LiveRuns, SearchPlace, find_runs
from checkpoint_cli.ui.server import PageServer
from checkpoint_sidecar.core import heartbeat, layout
from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.core.log import StoredEntry, encode
from checkpoint_sidecar.store.base import Store
from doubles.memory import MemoryStore
from report.reports import Page
from support.browser import Browser
from support.builders import History
from support.longlogs import write_log
from support.training_runs import eventful_run

RUN = "s3://training/team/llama"


def put(store: Store, entries: list[StoredEntry]) -> None:
    """Store the entries of a history under their numbers, as they were encoded."""
    for entry, data in zip(entries, encoded(entries), strict=True):
        store.put(layout.log_key(entry.number), data)


def put_as_of(store: Clocked, entries: list[StoredEntry], end: dt.datetime) -> None:
    """Store a history so that its last entry was stored at ``end`` by the store's clock."""
    shift = end - entries[-1].stored_at
    for entry, data in zip(entries, encoded(entries), strict=True):
        store.now = entry.stored_at + shift
        store.put(layout.log_key(entry.number), data)


class Clocked(MemoryStore):
    """A store in memory whose clock the test sets."""

    def __init__(self, url: str) -> None:
        self.now = dt.datetime.now(dt.UTC)
        super().__init__(url, clock=lambda: self.now)


def encoded(entries: list[StoredEntry]) -> Iterator[bytes]:
    for entry in entries:
        yield encode(
            number=entry.number,
            entry_id=entry.id,
            previous=entry.previous,
            time=entry.stored_at,
            writer=entry.writer,
            body=entry.body,  # type: ignore[arg-type]  # histories hold no unknown kinds
        )


class Stores:
    """Stores in memory by URL; one that holds a run is also part of those above it."""

    def __init__(self) -> None:
        self.bucket = MemoryStore("s3://training")
        self.runs: dict[str, MemoryStore] = {"s3://training": self.bucket}

    def run(self, url: str) -> MemoryStore:
        return self.runs.setdefault(url, Clocked(url))

    def opened(self, url: str) -> Store:
        return self.runs[url]

    def mention(self) -> None:
        """List the logs of all runs in the bucket, too."""
        for url, store in self.runs.items():
            if store is not self.bucket:
                for info in store.list():
                    self.bucket.put(f"{url.removeprefix('s3://training/')}/{info.key}", b"listed")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def page(self) -> Page:
        return Page(self.text)


@dataclass
class Pages:
    """A server, and what it serves."""

    server: PageServer
    stores: Stores
    history: History

    def get(self, path: str, *, method: str = "GET", host: str | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        try:
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", f"127.0.0.1:{self.server.server_port}" if host is None else host)
            connection.endheaders()
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())
        finally:
            connection.close()

    @property
    def home(self) -> str:
        return urlsplit(self.server.address).path


@contextmanager
def serving(stores: Stores, history: History, urls: list[str]) -> Iterator[Pages]:
    places = [SearchPlace(url, stores.opened, stores.opened) for url in urls]
    with PageServer(LiveRuns(lambda: places)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Pages(server, stores, history)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def pages() -> Iterator[Pages]:
    run, beat, _ = eventful_run()
    stores = Stores()
    store = stores.run(RUN)
    put(store, run.history.entries)
    store.put(layout.PROGRESS_KEY, heartbeat.encode(beat))
    write_log(stores.run("s3://training/other"), 40)
    stores.mention()
    with serving(stores, run.history, ["s3://training"]) as served:
        yield served


def test_runs_are_found_below_a_url_and_at_it() -> None:
    bucket = MemoryStore("s3://training")
    for key in ("a/_log/00000000000000000001.json", "b/c/_log/00000000000000000007.json", "d/_log/notes.txt", "e"):
        bucket.put(key, b"x")
    assert find_runs(bucket) == ("a", "b/c")
    write_log(bucket, 3)
    assert find_runs(bucket) == ("",)


def test_the_list_says_which_runs_train() -> None:
    stores, histories = Stores(), {}
    now = dt.datetime.now(dt.UTC)
    for name, age in (("running", 20), ("silent", 7200)):
        run, _, _ = eventful_run()
        histories[name] = run.history
        store = stores.run(f"s3://training/{name}")
        assert isinstance(store, Clocked)
        put_as_of(store, run.history.entries, now - dt.timedelta(seconds=age))
    stores.mention()
    with serving(stores, histories["running"], ["s3://training"]) as served:
        text = served.get(served.home).page.text
    assert "running" in text
    assert "silent for 2 h" in text
    assert text.count("78 %") == 2


def test_the_list_leads_to_a_run_and_the_run_to_its_snapshots(pages: Pages) -> None:
    listed = pages.get(pages.home).page
    assert "2 runs" in listed.text
    assert RUN in listed.text
    (link,) = [value for value in listed.values("href") if "llama" in value]
    run = pages.get(link).page
    assert "Steps over time" in run.text
    snapshot = pages.history.id(11500)
    (link,) = [value for value in run.values("href") if value.endswith(snapshot)]
    shown = pages.get(link).page
    assert "Step 11,500" in shown.text
    assert "the newest; the newest verified" in shown.text
    assert "Its data does not exist any more." in shown.text
    assert pages.history.snapshot(11500).commit.manifest_digest in shown.text
    assert "SnapshotCommitted" in shown.text
    parent = next(value for value in shown.values("href") if value.endswith(pages.history.id(11400)))
    assert "Step 11,400" in pages.get(parent).page.text


def test_a_page_is_live(pages: Pages) -> None:
    link = pages.server.links.run(RUN)
    before = pages.get(link).page
    (version,) = before.values("data-version")
    (poll,) = before.values("data-poll")
    assert pages.get(poll).text == version
    store = pages.stores.run(RUN)
    pages.history.committed(11600)
    put(store, pages.history.entries)
    assert pages.get(poll).text != version


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:80", "127.0.0.1", "", "127.0.0.1:1"])
def test_a_request_for_another_host_is_refused(pages: Pages, host: str) -> None:
    answer = pages.get(pages.home, host=host)
    assert answer.status == 403
    assert "llama" not in answer.text


def test_localhost_is_this_host(pages: Pages) -> None:
    assert pages.get(pages.home, host=f"localhost:{pages.server.server_port}").status == 200


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/wrong/", "/wrong/run?url=s3://training/team/llama", "//", ""])
def test_without_the_secret_there_is_nothing(pages: Pages, path: str) -> None:
    answer = pages.get(path or "/.")
    assert answer.status == 404
    assert "llama" not in answer.text


@pytest.mark.parametrize(
    "path", ["nothing", "run", "run?url=s3://training/absent", "run?url=file:///etc", "snapshot?url=" + RUN, "../"]
)
def test_only_runs_that_were_found_have_pages(pages: Pages, path: str) -> None:
    assert pages.get(f"{pages.home}{path}").status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_no_method_changes_anything(pages: Pages, method: str) -> None:
    assert pages.get(pages.home, method=method).status == 501


def test_the_server_listens_on_loopback_and_its_answers_are_neither_kept_nor_framed(pages: Pages) -> None:
    assert pages.server.server_address[0] == "127.0.0.1"
    headers = pages.get(pages.home).headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "Set-Cookie" not in headers
    assert pages.get(pages.home, method="HEAD").text == ""


def test_a_run_that_cannot_be_read_is_a_row_and_the_others_are_shown(pages: Pages) -> None:
    pages.stores.run("s3://training/other").delete([layout.log_key(5)])
    listed = pages.get(pages.home)
    assert listed.status == 200
    assert "entry 5 is missing" in listed.page.text
    assert "11,500" in listed.page.text
    failed = pages.get(pages.server.links.run("s3://training/other"))
    assert failed.status == 502
    assert "entry 5 is missing" in failed.page.text


def test_a_url_that_cannot_be_searched_is_named_above_the_list() -> None:
    stores = Stores()
    stores.run(RUN)

    class Closed(MemoryStore):
        def stat(self, key: str) -> None:
            raise StoreError("look for an object", key, "access denied")

    stores.runs["s3://closed"] = Closed("s3://closed")
    with serving(stores, History(), ["s3://closed", RUN]) as pages:
        text = pages.get(pages.home).page.text
    assert "access denied" in text
    assert "0 runs" in text


def test_a_hostile_name_is_escaped_on_every_page() -> None:
    word = "<script>alert(1)"
    history = History().started().committed(1, metrics={word: word}).found_damaged(1)
    history.retired(1, reasons=(word,))
    stores = Stores()
    put(stores.run(RUN), history.entries)
    with serving(stores, history, [RUN]) as pages:
        links = pages.server.links
        for path in (pages.home, links.run(RUN), links.snapshot(RUN, history.id(1)), f"{pages.home}{word}"):
            assert pages.get(path.replace(" ", "%20")).page.names["script"] == 1


@pytest.mark.browser
def test_a_person_clicks_through_the_pages_and_sees_them_grow(pages: Pages, chromium: Browser) -> None:
    chromium.show(1200, 900)
    chromium.open(pages.server.address)
    chromium.click("#run-table a[href*=llama]")
    assert chromium.run("return document.querySelector('h1').textContent") == "llama"
    chromium.click("#timeline [data-filter=purged]")
    put(pages.stores.run(RUN), pages.history.committed(11600).entries)
    chromium.wait_for("return document.querySelector('#snapshot-table td').textContent === '11,600'")
    pressed = "return document.querySelector('[data-filter=purged]').ariaPressed"
    assert chromium.run(pressed) == "false"
    chromium.click("#snapshot-table tbody tr:first-child a")
    assert chromium.run("return document.querySelector('h1').textContent") == "Step 11,600"
    chromium.click("nav.trail a")
    assert chromium.run("return document.querySelector('h1').textContent") == "2 runs"
    assert chromium.console() == []
