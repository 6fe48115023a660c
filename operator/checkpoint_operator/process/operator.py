"""One operator process: its connections, its queue and its health. Independent of kopf."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import random
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from checkpoint_operator.act.scrubber import Scrubber
from checkpoint_operator.fairness.breakers import Breakers
from checkpoint_operator.fairness.budget import MemoryPool
from checkpoint_operator.fairness.rate_limit import RateLimit
from checkpoint_operator.gather.knowledge import Knowledge
from checkpoint_operator.gather.kube import Kube
from checkpoint_operator.gather.nodes import node_from
from checkpoint_operator.gather.observer import Observer, checkpoint_from
from checkpoint_operator.gather.redaction import Redactor
from checkpoint_operator.gather.run_store import Rules
from checkpoint_operator.model.observed import Key
from checkpoint_operator.process.reconcile import Intervals, Reconciler
from checkpoint_operator.process.watchdog import Version, Watchdog
from checkpoint_operator.process.web import serving
from checkpoint_operator.process.work_queue import WorkQueue
from checkpoint_operator.report.metrics import Metrics

STOP_SECONDS = 20.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How to run.

    Attributes:
        namespaces: Those to serve; empty for the whole cluster.
        cluster_id: Identity of this cluster in the owners of runs; empty for the UID of kube-system.
        metrics_address: Host (empty for all addresses) and port, or None for no metrics.
        liveness: URL to answer probes at, or empty.
        resync_seconds: Interval between complete passes over everything.
        verify_bytes_per_second: How fast to read snapshots back to compare their checksums; 0 turns that off.
        deletes_per_second: Most objects to delete per second; 0 for no limit.
        quotas: See ``Quotas``.
        watch_nodes: Whether to save when a node announces its end; needs the right to watch nodes.
    """

    namespaces: tuple[str, ...] = ()
    cluster_id: str = ""
    rules: Rules = field(default_factory=Rules)
    metrics_address: tuple[str, int] | None = None
    liveness: str = ""
    resync_seconds: float = 300.0
    verify_bytes_per_second: float = 0.0
    deletes_per_second: float = 0.0
    quotas: Mapping[str, int] = field(default_factory=dict)
    watch_nodes: bool = False
    intervals: Intervals = field(default_factory=Intervals)
    writer: str = "operator"


class Operator:
    """The process. ``handlers`` starts it, stops it and passes it what the watches show."""

    def __init__(self, options: Options, *, redactor: Redactor) -> None:
        self.options = options
        self._knowledge = Knowledge(redactor=redactor, quotas=options.quotas)
        self._metrics = Metrics()
        self._watchdog = Watchdog()
        self._scrubber: Scrubber | None = None
        self._resync: asyncio.Task[None] | None = None
        self._opened = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Connect and start working on every Checkpoint.

        Raises:
            KubeError: The API server refused; without the CRDs it answers 404 here.
        """
        if self.options.liveness:
            parts = urlsplit(self.options.liveness)
            probes = serving(parts.hostname or "", parts.port or 80, parts.path or "/", self._answer_probe)
            await self._opened.enter_async_context(probes)
        self._kube = await self._opened.enter_async_context(Kube())
        breakers = Breakers(recovered=self._recovered)
        self._observer = Observer(
            self._kube,
            cluster=self.options.cluster_id or await self._kube.cluster_uid(),
            rules=self.options.rules,
            knowledge=self._knowledge,
            breakers=breakers,
            memory=MemoryPool(),
            writer=self.options.writer,
            deletions=RateLimit(self.options.deletes_per_second) if self.options.deletes_per_second else None,
        )
        if self.options.verify_bytes_per_second:
            self._scrubber = Scrubber(RateLimit(self.options.verify_bytes_per_second), wake=self.wake)
            self._scrubber.start()
        reconciler = Reconciler(
            self._kube,
            self._observer,
            knowledge=self._knowledge,
            metrics=self._metrics,
            scrubber=self._scrubber,
            wake=self.wake,
            intervals=self.options.intervals,
        )
        self._queue: WorkQueue[Key] = WorkQueue(reconciler.reconcile)
        if self.options.metrics_address is not None:
            scrapes = serving(*self.options.metrics_address, "/{any:.*}", self._metrics.answer)
            await self._opened.enter_async_context(scrapes)
        # Before any work: see Observer.note.
        for key in await self._list():
            self._queue.add(key)
        self._queue.start()
        self._resync = asyncio.create_task(self._resync_forever(), name="resync")
        logger.info("started: %s", ", ".join(self.options.namespaces) or "all namespaces")

    async def stop(self) -> None:
        """Finish the current passes, then disconnect."""
        if self._resync is not None:
            self._resync.cancel()
            await asyncio.gather(self._resync, return_exceptions=True)
            await self._queue.stop(grace=STOP_SECONDS)
        if self._scrubber is not None:
            await self._scrubber.stop()
        await self._opened.aclose()
        logger.info("stopped")

    def changed_by_others(self, plural: str, body: Mapping[str, Any]) -> bool:
        """Whether the watch showed an object with another status than this process wrote last."""
        metadata = body["metadata"]
        return self._kube.statuses.changed((plural, metadata["namespace"], metadata["name"]), body.get("status"))

    def gone(self, plural: str, key: Key) -> None:
        """Note that the watch showed the deletion of an object."""
        self._kube.statuses.forget((plural, key.namespace, key.name))

    def wake(self, key: Key) -> None:
        """Request a pass: something about this Checkpoint changed."""
        self._queue.add(key)

    def watched(self, key: Key, metadata: Mapping[str, Any]) -> None:
        """Note that the watch on Checkpoints showed this one, and request a pass."""
        self._watchdog.show(key, _version(metadata))
        self.wake(key)

    def show_pod(self, key: Key, body: Mapping[str, Any]) -> None:
        """Note that the watch on pods showed a pod of this Checkpoint, perhaps for the last time."""
        self._knowledge.bare_pods.show(key, body, now=dt.datetime.now(dt.UTC))
        self.wake(key)

    def show_node(self, body: Mapping[str, Any], *, gone: bool) -> None:
        """Note that the watch on nodes showed this one."""
        node = node_from(body)
        if gone:
            self._knowledge.nodes.remove(node.name)
            return
        for key in self._knowledge.nodes.show(node):
            self.wake(key)

    def complaint(self) -> str:
        """Return why this process should be restarted, or an empty string.

        No tenant's store, Secret or log may cause a reason: that would restart the operator of all others.
        """
        if self._watchdog.blind:
            return "listings show Checkpoints, or changes of them, that the watch never showed"
        if self._resync is None or self._resync.done():
            return "Checkpoints are no longer listed"
        return ""

    async def _answer_probe(self, _: web.Request) -> web.Response:
        complaint = self.complaint()
        if complaint:
            logger.error("this process should be restarted: %s", complaint)
        return web.json_response({"healthy": complaint or "ok"}, status=500 if complaint else 200)

    def _recovered(self, connection: Hashable) -> None:
        """Request a pass over each Checkpoint whose store answers again."""
        for key in self._queue.at(connection):
            self._queue.add(key)

    async def _list(self) -> dict[Key, Version]:
        listed: dict[Key, Version] = {}
        for namespace in self.options.namespaces or (None,):
            for body in await self._kube.checkpoints(namespace):
                metadata = body["metadata"]
                key = Key(metadata["namespace"], metadata["name"])
                listed[key] = _version(metadata)
                checkpoint, _ = checkpoint_from(key, body)
                self._observer.note(checkpoint)
                self._knowledge.quotas.expect(key, checkpoint.status.get("retainedBytes", 0))
        return listed

    async def _resync_forever(self) -> None:
        while True:
            await asyncio.sleep(self.options.resync_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load
            shown = self._watchdog.shown
            try:
                listed = await self._list()
            except Exception:
                logger.exception("resync: the Checkpoints could not be listed; next try in the next interval")
                continue
            gone = self._watchdog.compare(shown, listed)
            for key in (*listed, *gone):
                self._queue.add(key)
                await asyncio.sleep(0.01)


def _version(metadata: Mapping[str, Any]) -> Version:
    return Version(metadata["uid"], metadata["generation"])
