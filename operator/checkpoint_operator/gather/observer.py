"""Gathers everything about one Checkpoint: from the API server, the object store and what earlier passes found.

"Unknown" is not "empty": a listing that fails raises, and a store that cannot be read gives a ``StoreFault`` and no
``Run``.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from checkpoint_operator.decide import finalizer
from checkpoint_operator.decide.warm_starts import request_of
from checkpoint_operator.fairness.breakers import Breakers, Permit
from checkpoint_operator.fairness.budget import OBSERVE_SECONDS, READING, Limits, MemoryPool, Meter
from checkpoint_operator.fairness.rate_limit import RateLimit
from checkpoint_operator.fairness.slots import NoRoomError, TenantSlot
from checkpoint_operator.fairness.store_threads import AbandonedError, run_in_thread
from checkpoint_operator.gather.endpoints import check_servers
from checkpoint_operator.gather.knowledge import Knowledge
from checkpoint_operator.gather.kube import Kube, KubeError
from checkpoint_operator.gather.memory import REFUSED_SECONDS, Memory
from checkpoint_operator.gather.places import Server, connection_of, nowhere, server_of, server_without_secret
from checkpoint_operator.gather.pods import pod_from
from checkpoint_operator.gather.prefixes import claim_state
from checkpoint_operator.gather.run_store import (
    Rules,
    RunStore,
    StorageFaultError,
    fault_from,
    missing_log,
    settings_for,
)
from checkpoint_operator.gather.spec_policy import policy_of
from checkpoint_operator.model.observed import (
    Checkpoint,
    Cluster,
    Key,
    Mirror,
    Observed,
    RunProgress,
    SourceCheckpoint,
    StoreFault,
)
from checkpoint_operator.model.timestamps import parse_timestamp
from checkpoint_sidecar.core.api import RELEASE_ANNOTATION, CheckpointSpec, Reason
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.core.location import parse_url
from checkpoint_sidecar.core.log import MAX_REQUEST, Owner
from checkpoint_sidecar.core.policy import Policy
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.store.access import KNOWN_KEYS, StoreSettings

PROGRESS_SECONDS = 10.0
SILENT_SECONDS = 120.0
"""Interval of heartbeat polls for a run that has no pods and was silent for as long."""

MAX_SECRET_BYTES = 64 * 1024
FORBIDDEN = 403

REPROBE_SECONDS = 300.0
QUIET_SECRET_SECONDS = 60.0
"""Interval of Secret polls for a run that has no pods and sent no heartbeat for ``SILENT_SECONDS``."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _LogReading:
    """Result of reading a store."""

    run: Run | None = None
    now: dt.datetime | None = None
    fault: StoreFault | None = None
    progress: RunProgress | None = None


class Observer:
    """Reads the API server and the store. Writes nothing but the objects of the probe, and decides nothing.

    Args:
        cluster: UID of this cluster in the owner of a run.
        breakers: Say whether a store may be asked.
        memory: Pool for large objects, shared by all passes.
        writer: Signature of this operator in the logs' audit trail.
        deletions: Objects per second, over all Checkpoints; None for no limit.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        cluster: str,
        rules: Rules,
        knowledge: Knowledge,
        breakers: Breakers,
        memory: MemoryPool,
        writer: str,
        deletions: RateLimit | None,
    ) -> None:
        self._kube = kube
        self._cluster = cluster
        self._rules = rules
        self._knowledge = knowledge
        self._prefixes = knowledge.prefixes
        self._breakers = breakers
        self._memory = memory
        self.writer = writer
        self._deletions = deletions

    async def observe(self, key: Key, memory: Memory, slot: TenantSlot) -> Observed | None:
        """Observe a Checkpoint; None if it does not exist.

        Raises:
            KubeError: The API server did not answer completely.
            NoRoomError: The store is busy with other Checkpoints.
        """
        body = await self._kube.checkpoint(key)
        if body is None:
            return None
        checkpoint, complaint = checkpoint_from(key, body)
        policy, fault = _translate(checkpoint, complaint)
        self.note(checkpoint)
        settings: StoreSettings | None = None
        permit: Permit | None = None
        if checkpoint.spec is not None and fault is None:
            try:
                memory.note_spec(checkpoint.spec, checkpoint.generation)
                settings = await self._settings(key, checkpoint.spec, memory)
                self._prefixes.locate(key, server_of(settings))
            except StorageFaultError as error:
                fault = error.fault
        for other in self._prefixes.to_locate(key):
            self._prefixes.locate(other, await self._server(other))
        rival = self._prefixes.rival(key)
        if settings is not None and rival is None:
            try:
                permit = self._admit(key, settings, slot)
            except StorageFaultError as error:
                fault = error.fault
        if permit is None:
            memory.session = None
        snapshots, listed = await asyncio.gather(self._kube.snapshots(key), self._kube.pods(key))
        pods = tuple(pod_from(each) for each in listed)
        reading = _LogReading()
        if settings is not None and permit is not None:
            reading = await self._read_store(memory, settings, checkpoint, permit, slot)
            fault = reading.fault
        return Observed(
            owner=self._owner(key),
            checkpoint=checkpoint,
            wall=dt.datetime.now(dt.UTC),
            policy=policy,
            fault=fault,
            run=reading.run,
            now=reading.now,
            cluster=Cluster(
                rival=rival,
                namespace_deleted=await self._namespace_deleted(checkpoint, fault),
                mirrors=tuple(mirror_from(each) for each in snapshots),
                pods=pods,
                nodes=self._knowledge.nodes.place(key, (pod.node for pod in pods)),
                disrupted=self._knowledge.bare_pods.of(key),
                source=await self._source(checkpoint, reading.run),
                wanted=self._knowledge.warm_starts.wanted(checkpoint),
            ),
            memory=memory.known(),
        )

    def note(self, checkpoint: Checkpoint) -> None:
        """Note that a Checkpoint exists. Prefixes are settled among all Checkpoints, and some begin at others."""
        self._knowledge.warm_starts.note(checkpoint)
        if checkpoint.spec is not None:
            self._prefixes.note(
                checkpoint.key,
                url=checkpoint.spec.storage.url,
                server=server_without_secret(checkpoint.spec.storage),
                state=claim_state(checkpoint.status, self._owner(checkpoint.key)),
                created_at=checkpoint.created_at,
                uid=checkpoint.uid,
            )

    async def _source(self, checkpoint: Checkpoint, run: Run | None) -> SourceCheckpoint | None:
        """Return the Checkpoint at whose snapshot this run is to begin, or None."""
        request = request_of(checkpoint)
        if request is None or run is None or run.ever_committed or request.key == checkpoint.key:
            return None
        try:
            body = await self._kube.checkpoint(request.key)
            found = checkpoint_from(request.key, body)[0] if body is not None else None
            if found is None or found.spec is None or found.deleted_at is not None:
                return None
            if found.status.get("claimedBy") != str(self._owner(request.key)):
                return None  # its prefix may hold the run of another one
            snapshots = await self._kube.snapshots(request.key)
        except KubeError as error:
            if error.status != FORBIDDEN:
                raise
            return None  # this operator does not serve that namespace
        mirrors = tuple(mirror_from(each) for each in snapshots)
        return SourceCheckpoint(request.key, found.spec.storage, found.spec.grants, found.status, mirrors)

    async def secret_changed(self, key: Key, memory: Memory) -> bool:
        """Whether the Secret changed or vanished since the last pass read it.

        Polled as often as the log while pods run or training wrote lately, else more rarely.
        """
        now = time.monotonic()
        quiet = not memory.running and now - memory.heard_at > SILENT_SECONDS
        if memory.secret is None or (quiet and now - memory.secret_at < QUIET_SECRET_SECONDS):
            return False
        name, known = memory.secret
        memory.secret_at = now
        try:
            return _digest(await self._kube.secret(key.namespace, name)) != known
        except KubeError as error:
            logger.debug("%s: Secret %s could not be polled: %s", key, name, error)
            return False

    async def log_grew(self, memory: Memory, slot: TenantSlot) -> bool:
        """Whether the log has new entries; costs one small read.

        Raises:
            CheckpointError: The log could not be read.
            AbandonedError: The store did not return in time.
        """
        session = memory.session
        if session is None:
            return True
        session.meter.begin()
        wanted = _progress_due(memory)

        def poll() -> tuple[Run, RunProgress | None]:
            run = session.log.poll()
            return run, session.progress() if wanted else None

        run, progress = await self.in_thread(poll, memory, slot)
        if wanted:
            _remember_progress(memory, progress)
        return run.head != memory.head

    async def in_thread(
        self, call: Callable[[], T], memory: Memory, slot: TenantSlot, *, seconds: float = OBSERVE_SECONDS
    ) -> T:
        """Return the result of a blocking call to a Checkpoint's store.

        Raises:
            AbandonedError: It did not return in time; its session is abandoned too.
        """
        try:
            return await run_in_thread(call, seconds=seconds, slot=slot)
        except AbandonedError:
            if memory.session is not None:
                memory.session.meter.close()
                memory.session = None
            raise

    def _admit(self, key: Key, settings: StoreSettings, slot: TenantSlot) -> Permit:
        """Return a permit to use the store now.

        Raises:
            NoRoomError: It is busy.
            StorageFaultError: It did not answer in the last tries.
        """
        connection = connection_of(settings)
        if not slot.move(connection):
            raise NoRoomError(connection)
        answer = self._breakers.ask(connection, (key.namespace, parse_url(settings.url).bucket))
        if isinstance(answer, Permit):
            return answer
        message = (
            f"Nothing was sent to {settings.endpoint or settings.url}: {answer.cause}, several times in a row. "
            "The operator probes the store now and then, and resumes as soon as it answers."
        )
        raise StorageFaultError(StoreFault(Reason.STORE_UNAVAILABLE, message, retry_seconds=answer.seconds + 1))

    async def _read_store(
        self, memory: Memory, settings: StoreSettings, checkpoint: Checkpoint, permit: Permit, slot: TenantSlot
    ) -> _LogReading:
        wanted = _progress_due(memory)
        try:
            session = memory.session
            if session is None or session.settings != settings:
                memory.refusal = ""
                session = memory.session = await run_in_thread(
                    lambda: self._open(settings), seconds=OBSERVE_SECONDS, slot=slot
                )
            session.meter.begin()
            opened = session
            found = await self.in_thread(lambda: self._read(opened, checkpoint, progress=wanted), memory, slot)
        except AbandonedError:
            message = f"A request to {settings.endpoint or settings.url} did not return within a minute."
            found = _LogReading(
                fault=StoreFault(Reason.PASS_TIMED_OUT, message, unreachable="a request did not return")
            )
        except StorageFaultError as error:
            found = _LogReading(fault=error.fault)
        except CheckpointError as error:
            found = _LogReading(fault=fault_from(error))
        except Exception:
            memory.session = None
            self._breakers.report(permit, "the client of the store failed")
            raise
        if found.run is not None:
            memory.note_run(found.run)
        fault = found.fault
        self._breakers.report(permit, fault.unreachable if fault else "")
        if fault is not None and found.run is None and not _worth_keeping(memory.session, fault):
            # The repair may be one that only a new connection notices.
            memory.session = None
        if wanted:
            _remember_progress(memory, found.progress)
        return found

    async def _namespace_deleted(self, checkpoint: Checkpoint, fault: StoreFault | None) -> bool:
        """Ask the API server, but only where the answer makes a difference."""
        if checkpoint.deleted_at is None or fault is None or finalizer.FINALIZER not in checkpoint.finalizers:
            return False
        return await self._kube.namespace_deleted(checkpoint.key.namespace)

    def _owner(self, key: Key) -> Owner:
        return Owner(self._cluster, key.namespace, key.name)

    async def _server(self, key: Key) -> Server:
        """Find the server of another Checkpoint, which its Secret names."""
        body = await self._kube.checkpoint(key)
        spec = checkpoint_from(key, body)[0].spec if body is not None else None
        if spec is None:
            return nowhere(f"{key} does not exist")
        try:
            return server_of(await self._settings(key, spec, Memory()))
        except StorageFaultError as error:
            return nowhere(f"{key}: {error.fault.reason}")

    async def _settings(self, key: Key, spec: CheckpointSpec, memory: Memory) -> StoreSettings:
        memory.secret = None
        reference = spec.storage.credentials_secret
        if reference is None:
            return settings_for(key, spec.storage, None, self._rules)
        secret = await self._kube.secret(key.namespace, reference.name)
        memory.secret, memory.secret_at = (reference.name, _digest(secret)), time.monotonic()
        if secret is None:
            message = f"Secret {reference.name} does not exist in namespace {key.namespace}. Create it."
            raise StorageFaultError(StoreFault(Reason.SECRET_NOT_FOUND, message))
        if any(len(secret.get(name, "")) > MAX_SECRET_BYTES for name in KNOWN_KEYS):
            message = (
                f"A value in Secret {reference.name} is longer than {MAX_SECRET_BYTES} bytes. No store has such keys."
            )
            raise StorageFaultError(StoreFault(Reason.INVALID_CREDENTIALS, message))
        self._knowledge.redactor.remember(key, secret)
        return settings_for(key, spec.storage, secret, self._rules)

    def _open(self, settings: StoreSettings) -> RunStore:
        meter = Meter(settings.url, limits=Limits(), memory=self._memory)
        reading = Meter(settings.url, limits=READING, memory=self._memory)
        return RunStore(settings, writer=self.writer, deletions=self._deletions, meter=meter, reading=reading)

    def _read(self, session: RunStore, checkpoint: Checkpoint, *, progress: bool) -> _LogReading:
        """Read the run, the store's clock and, if wanted, the heartbeat.

        Args:
            progress: Whether to read the heartbeat.
        """
        # Where nothing can be deleted, a probe leaves its objects behind.
        interval = REFUSED_SECONDS if session.refusal else REPROBE_SECONDS
        if session.probed_at is None or time.monotonic() - session.probed_at > interval:
            check_servers(session.settings, self._rules)
            session.probe()
        run = session.read_log()
        missing = missing_log(session, run, checkpoint)
        if missing is not None:
            return _LogReading(fault=missing)
        heartbeat = session.progress() if progress else None
        if session.read_only:
            fault = StoreFault(Reason.READ_ONLY, session.read_only, stalled=True)
            return _LogReading(run, session.now() if run.head else None, fault, heartbeat)
        return _LogReading(run, session.now(), None, heartbeat)


def _progress_due(memory: Memory) -> bool:
    """Whether to read the heartbeat of a run now; notes that it is read."""
    now = time.monotonic()
    silent = not memory.running and now - max(memory.heartbeat_at, memory.heard_at) > SILENT_SECONDS
    if now - memory.progress_at < (SILENT_SECONDS if silent else PROGRESS_SECONDS):
        return False
    memory.progress_at = now
    return True


def _remember_progress(memory: Memory, progress: RunProgress | None) -> None:
    """Remember how far each attempt came: a new attempt overwrites the heartbeat of the one before."""
    if progress is None or progress == memory.progress.get(progress.attempt):
        return
    memory.heartbeat_at = time.monotonic()
    memory.progress[progress.attempt] = progress
    for attempt in sorted(memory.progress)[:-2]:
        del memory.progress[attempt]


def _digest(secret: Mapping[str, str] | None) -> str:
    """Digest the content of a Secret, so that a change shows and the content is not kept."""
    return hashlib.sha256(json.dumps(secret, sort_keys=True).encode()).hexdigest()


def _worth_keeping(session: RunStore | None, fault: StoreFault) -> bool:
    """Whether the next pass can continue where this one ended: a long log at a slow store."""
    return session is not None and fault.reason is Reason.STORE_TOO_SLOW and session.proven


def _translate(checkpoint: Checkpoint, complaint: str) -> tuple[Policy | None, StoreFault | None]:
    if checkpoint.spec is None:
        return None, StoreFault(Reason.INVALID_SPEC, complaint, stalled=True)
    try:
        return policy_of(checkpoint.spec), None
    except (ValueError, msgspec.ValidationError) as error:
        return None, StoreFault(Reason.INVALID_SPEC, f"read the spec: {error}. Correct it.", stalled=True)


def checkpoint_from(key: Key, body: Mapping[str, Any]) -> tuple[Checkpoint, str]:
    """Read a Checkpoint. Return it, and what is wrong with its spec or an empty string."""
    metadata = body["metadata"]
    deleted_at = metadata.get("deletionTimestamp")
    spec: CheckpointSpec | None = None
    complaint = ""
    try:
        spec = msgspec.convert(body.get("spec") or {}, CheckpointSpec)
    except msgspec.ValidationError as error:
        complaint = f"read the spec: {error}. Correct it."
    return Checkpoint(
        key=key,
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        created_at=metadata["creationTimestamp"],
        spec=spec,
        status=body.get("status") or {},
        resource_version=metadata.get("resourceVersion", ""),
        finalizers=tuple(metadata.get("finalizers") or ()),
        deleted_at=parse_timestamp(deleted_at) if deleted_at else None,
    ), complaint


def mirror_from(body: Mapping[str, Any]) -> Mirror:
    """Read a CheckpointSnapshot. The last three parts of its name are the snapshot's id."""
    metadata = body["metadata"]
    owners = metadata.get("ownerReferences") or ()
    return Mirror(
        name=metadata["name"],
        snapshot="-".join(metadata["name"].split("-")[-3:]),
        generation=metadata.get("generation", 1),
        disposition=body.get("spec", {}).get("disposition", "Auto"),
        status=body.get("status") or {},
        deleting="deletionTimestamp" in metadata,
        release_request=(metadata.get("annotations") or {}).get(RELEASE_ANNOTATION, "")[:MAX_REQUEST],
        uid=metadata.get("uid", ""),
        controller=next((owner["uid"] for owner in owners if owner.get("controller")), ""),
    )
