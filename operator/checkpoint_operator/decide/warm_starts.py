"""Decides at which snapshot of which other Checkpoint a new run begins, and whether it may. Pure.

Both sides have to agree across namespaces: this Checkpoint names the other one, and that one names this namespace and
the snapshot in ``spec.grants``. Without such a grant nothing is said about the other one, not even whether it exists.

A grant of ``latest`` or ``best`` stays good for a run that asked for just that, although the other run trains on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from checkpoint_operator.model.observed import Checkpoint, Key, Mirror, Observed, SourceCheckpoint
from checkpoint_sidecar.core.api import ConditionType, Reason, Storage
from checkpoint_sidecar.core.api_sources import StartSource
from checkpoint_sidecar.core.log import WarmStartChosen
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.core.selectors import BEST, LATEST
from checkpoint_sidecar.core.warm_start import answers

ALL = "all"
HELD = "held"


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What ``spec.restore.startFrom.checkpoint`` asks for."""

    key: Key
    selector: str
    part: str

    @property
    def text(self) -> str:
        """The request as the log quotes it."""
        return f"Checkpoint {self.key}@{self.selector}"


@dataclass(frozen=True, slots=True)
class SourceAccess:
    """How pods read the other run, where that differs from how they read their own."""

    storage: Storage
    secret: str


@dataclass(frozen=True, slots=True)
class WarmStartVerdict:
    """The answer to ``spec.restore.startFrom.checkpoint``.

    Attributes:
        chosen: The snapshot, or None.
        access: None if pods read the other run like their own.
        reason: Why there is no snapshot, or None.
        message: The same in words.
    """

    chosen: WarmStartChosen | None = None
    access: SourceAccess | None = None
    reason: Reason | None = None
    message: str = ""


def request_of(checkpoint: Checkpoint) -> SourceRequest | None:
    """Return the other Checkpoint that this one names, or None."""
    spec = checkpoint.spec
    start = spec.restore.start_from if spec is not None else None
    if start is None or not start.checkpoint:
        return None
    name, _, selector = start.checkpoint.partition("@")
    namespace, _, name = name.rpartition("/")
    return SourceRequest(Key(namespace or checkpoint.key.namespace, name), selector or LATEST, start.part or "")


def judge_warm_start(observed: Observed) -> WarmStartVerdict | None:
    """Return the verdict on the other Checkpoint that this one names. None if it names none, or has begun already."""
    request, run = request_of(observed.checkpoint), observed.run
    if request is None or run is None or run.ever_committed:
        return None
    mine, source = observed.checkpoint.key, observed.cluster.source
    if request.key == mine:
        return _refused(Reason.WARM_START_NOT_FOUND, "A run cannot begin at a snapshot of its own.")
    chosen = _chosen(run, request, source)
    if request.key.namespace != mine.namespace and not _granted(request, source, chosen, mine.namespace):
        message = (
            f"Checkpoint {request.key} does not exist, or does not grant {request.selector} to this namespace. Its "
            "owner has to list the namespace and the snapshot in spec.grants. No pod starts until then."
        )
        return _refused(Reason.WARM_START_NOT_GRANTED, message)
    if source is None:
        return _refused(Reason.WARM_START_NOT_FOUND, f"Checkpoint {request.key} does not exist. No pod starts.")
    if chosen is None:
        message = f"Checkpoint {request.key} has no snapshot {request.selector} that can be restored. No pod starts."
        return _refused(Reason.WARM_START_NOT_FOUND, message)
    return _with_access(observed, source, chosen)


def _refused(reason: Reason, message: str) -> WarmStartVerdict:
    return WarmStartVerdict(reason=reason, message=message)


def _chosen(run: Run, request: SourceRequest, source: SourceCheckpoint | None) -> WarmStartChosen | None:
    """Return what the log says already, else what the request means now."""
    if answers(run.warm_start, request.text, request.part):
        return run.warm_start
    snapshot = _find(request, source) if source is not None else None
    if source is None or snapshot is None:
        return None
    return WarmStartChosen(request.text, source.storage.url.rstrip("/"), snapshot, step_of(snapshot), request.part)


def _find(request: SourceRequest, source: SourceCheckpoint) -> str | None:
    if request.selector in (LATEST, BEST):
        return _named(source, request.selector)
    ready = [mirror.snapshot for mirror in source.mirrors if _restorable(mirror)]
    if request.selector.isdecimal():
        found = [snapshot for snapshot in ready if step_of(snapshot) == int(request.selector)]
        return max(found, key=_attempt_of, default=None)
    found = [snapshot for snapshot in ready if snapshot.startswith(request.selector)]
    return found[0] if len(found) == 1 else None


def _named(source: SourceCheckpoint, selector: str) -> str | None:
    """Return the latest or best snapshot of another Checkpoint, by its status."""
    found: str | None = source.status.get(selector, {}).get("snapshot")
    return found


def _restorable(mirror: Mirror) -> bool:
    conditions = mirror.status.get("conditions", ())
    return any((each.get("type"), each.get("status")) == (ConditionType.READY, "True") for each in conditions)


def _granted(
    request: SourceRequest, source: SourceCheckpoint | None, chosen: WarmStartChosen | None, namespace: str
) -> bool:
    if source is None:
        return False
    entries = {entry for grant in source.grants if grant.namespace == namespace for entry in grant.snapshots}
    if entries & {ALL, request.selector}:
        return True
    return chosen is not None and not entries.isdisjoint(_names_of(chosen.snapshot, source))


def _names_of(snapshot: str, source: SourceCheckpoint) -> Iterator[str]:
    """Yield the words by which a grant may mean a snapshot at present."""
    yield snapshot
    yield str(step_of(snapshot))
    yield from (selector for selector in (LATEST, BEST) if _named(source, selector) == snapshot)
    if any(mirror.snapshot == snapshot and mirror.disposition == "Hold" for mirror in source.mirrors):
        yield HELD


def _with_access(observed: Observed, source: SourceCheckpoint, chosen: WarmStartChosen) -> WarmStartVerdict:
    """Add the access of pods. The Secret of another namespace is never handed out."""
    spec = observed.checkpoint.spec
    assert spec is not None  # a request was read from it
    start, own, other = spec.restore.start_from or StartSource(), spec.storage, source.storage
    neighbors = source.key.namespace == observed.checkpoint.key.namespace
    given = start.credentials_secret or (other.credentials_secret if neighbors else None)
    if _server(own) == _server(other) and given in (None, own.credentials_secret):
        return WarmStartVerdict(chosen)
    if given is None and other.endpoint:
        message = (
            f"The run of Checkpoint {source.key} is at another server, to which the own credentials are not sent: set "
            "spec.restore.startFrom.credentialsSecret. No pod starts until then."
        )
        return _refused(Reason.WARM_START_NEEDS_SECRET, message)
    return WarmStartVerdict(chosen, SourceAccess(other, given.name if given else ""))


def _server(storage: Storage) -> tuple[str, str]:
    return storage.url.partition("://")[0], storage.endpoint.rstrip("/")


def step_of(snapshot: str) -> int:
    """Return the step in the id of a snapshot."""
    step = snapshot.partition("-")[0]
    return int(step) if step.isdecimal() else 0


def _attempt_of(snapshot: str) -> int:
    attempt = snapshot.split("-")[1:2]
    return int(attempt[0]) if attempt and attempt[0].isdecimal() else 0
