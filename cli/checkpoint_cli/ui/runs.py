"""Finds the runs below some URLs, and keeps a reader of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from checkpoint_cli.report.facts import RunFacts
from checkpoint_cli.report.gather import RunReader
from checkpoint_cli.report.view import RunReport, report_of
from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import CheckpointError, LogReplacedError, ObjectNotFoundError
from checkpoint_sidecar.core.manifest import MAX_MANIFEST_BYTES, Manifest
from checkpoint_sidecar.core.manifest import decode as decode_manifest
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.store.base import Store

SEARCH_SECONDS = 60.0
"""How long a list of runs is used before the store is searched again."""

REPORT_SECONDS = 2.0
"""How long a report is used although the run may have changed: several pages ask for it at once."""


def find_runs(store: Store) -> tuple[str, ...]:
    """Return the prefixes of all runs at or below a URL, relative to it; "" is the URL itself.

    Raises:
        StoreError: The store failed, or the listing was ended because it is too long.
    """
    if store.stat(layout.MARKER_KEY) is not None or next(store.list(layout.LOG_FOLDER), None) is not None:
        return ("",)
    found: dict[str, None] = {}
    for info in store.list():
        prefix, folder, rest = info.key.rpartition(f"/{layout.LOG_FOLDER}")
        if folder and layout.log_number(f"{layout.LOG_FOLDER}{rest}"):
            found.setdefault(prefix)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class SearchPlace:
    """A URL at or below which there may be runs.

    Attributes:
        opened: Opens the store at the URL of a run.
        searched: Opens the store to search it, which may limit its listings.
    """

    url: str
    opened: Callable[[str], Store]
    searched: Callable[[str], Store]


@dataclass(slots=True)
class _CachedRun:
    """One run, and the latest report of it."""

    store: Store
    reader: RunReader
    lock: threading.Lock = field(default_factory=threading.Lock)
    report: RunReport | None = None
    version: str = ""
    made: float = 0.0


class LiveRuns:
    """All runs below some URLs. Safe from several threads.

    Args:
        places: Where to look for runs, asked again for each search.
    """

    def __init__(self, places: Callable[[], Iterable[SearchPlace]]) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._runs: dict[str, _CachedRun] = {}
        self._problems: dict[str, str] = {}
        self._searched: float | None = None

    def search(self) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Return the URLs of all runs in order, and the failure of each URL that could not be searched."""
        with self._lock:
            now = time.monotonic()
            if self._searched is None or now - self._searched > SEARCH_SECONDS:
                self._problems = {}
                try:
                    for place in self._places():
                        self._search(place)
                except CheckpointError as error:
                    self._problems["search"] = str(error)
                self._searched = now
            return tuple(sorted(self._runs)), dict(self._problems)

    def _search(self, place: SearchPlace) -> None:
        if place.url in self._runs:
            return
        try:
            for prefix in find_runs(place.searched(place.url)):
                address = f"{place.url}/{prefix}".rstrip("/")
                if address not in self._runs:
                    store = place.opened(address)
                    self._runs[address] = _CachedRun(store, RunReader(store))
        except CheckpointError as error:
            self._problems[place.url] = str(error)

    def report(self, url: str) -> tuple[RunReport, str] | None:
        """Return the report of a run and its version; None for a URL that is not one of the runs.

        Raises:
            LogError: The log cannot be read.
            StoreError: The store failed.
        """
        run = self._run(url)
        if run is None:
            return None
        with run.lock:
            if run.report is None or time.monotonic() - run.made > REPORT_SECONDS:
                facts = self._read(run)
                run.report, run.version, run.made = report_of(facts), str(facts.run.head), time.monotonic()
            return run.report, run.version

    def version(self, url: str) -> str | None:
        """Return the current version of a run, which costs one request; None for a URL that is not one of the runs.

        Raises:
            LogError: The log cannot be read.
            StoreError: The store failed.
        """
        run = self._run(url)
        if run is None:
            return None
        with run.lock:
            try:
                return run.reader.version()
            except LogReplacedError:
                run.reader = RunReader(run.store)
                return run.reader.version()

    def manifest(self, url: str, snapshot: Snapshot) -> Manifest | None:
        """Read the manifest of a snapshot; None when its data does not exist any more.

        Raises:
            CheckpointError: It is damaged, or the store failed.
        """
        run = self._run(url)
        if run is None:
            return None
        key = f"{snapshot.commit.path}/{layout.MANIFEST_NAME}"
        try:
            stored = run.store.get(key, max_bytes=MAX_MANIFEST_BYTES)
        except ObjectNotFoundError:
            return None
        return decode_manifest(stored.data, expected_digest=snapshot.commit.manifest_digest, subject=key)

    def _run(self, url: str) -> _CachedRun | None:
        self.search()
        return self._runs.get(url)

    @staticmethod
    def _read(run: _CachedRun) -> RunFacts:
        try:
            return run.reader.read()
        except LogReplacedError:
            run.reader = RunReader(run.store)
            return run.reader.read()
