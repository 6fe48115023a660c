"""What the log means, a second time: read from the design, straight from JSON, with none of the code under test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

LIVE, RETIRED, PURGING, PURGED = "Live", "Retired", "Purging", "Purged"
HELD = (LIVE, RETIRED)
AUTOMATIC = ("Schedule", "Request", "Termination", "Eviction", "Final")
DEFAULTS: Json = {
    "overwrite": "Never",
    "retention": None,
    "restore": {"mode": "Latest", "maxFailuresPerSnapshot": 2, "maxFallback": 3, "onMissing": "Auto"},
}


@dataclass
class Saved:
    """A commit that counts."""

    id: str
    step: int
    path: str
    parent: str
    replaces: str
    bytes: int = 0
    state: str = LIVE
    verified: bool = False
    compared: bool = False
    failures: int = 0
    disposition: str = "Auto"
    releases: set[str] = field(default_factory=set)
    retired_at: float = 0.0
    saved_at: float = 0.0

    @property
    def proven(self) -> bool:
        return self.verified and not self.failures


@dataclass
class Started:
    """An attempt."""

    number: int
    request: str
    fresh: bool
    in_use: str
    continues: str
    restored: str = ""
    last: str = ""
    heard_at: float = 0.0

    @property
    def base(self) -> str:
        return self.last or self.restored or self.continues


@dataclass
class Request:
    """A rollback, or a fresh start (no target), that no commit has carried yet."""

    id: str
    target: str


@dataclass
class Ledger:
    """State after the entries so far."""

    owner: str = ""
    fenced: int = 0
    policy: Json = field(default_factory=lambda: DEFAULTS)
    configured: tuple[str, int] | None = None
    pending: Request | None = None
    rollbacks: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    consumed: set[str] = field(default_factory=set)
    attempts: dict[int, Started] = field(default_factory=dict)
    saved: dict[str, Saved] = field(default_factory=dict)
    rejected: set[str] = field(default_factory=set)
    newest: str = ""

    @property
    def highest(self) -> Started | None:
        return self.attempts[max(self.attempts)] if self.attempts else None

    @property
    def restore(self) -> Json:
        restore: Json = self.policy["restore"]
        return restore

    @property
    def grace(self) -> float:
        """How long what is not needed stays, in seconds."""
        retention = self.policy["retention"]
        return float(retention["graceSeconds"]) if retention else 3600.0

    def may_speak(self, attempt: int) -> bool:
        """Whether nothing fences an attempt."""
        return bool(self.highest) and attempt == max(self.attempts) and attempt > self.fenced

    def chain(self, snapshot: str) -> list[Saved]:
        """A snapshot and its ancestors, newest first."""
        found = []
        while snapshot:
            found.append(self.saved[snapshot])
            snapshot = found[-1].parent
        return found

    def lineage(self) -> list[Saved]:
        return self.chain(self.newest)

    def quarantined(self, saved: Saved) -> bool:
        limit: int = self.restore["maxFailuresPerSnapshot"]
        return saved.failures >= limit

    def to_restore(self, request: str) -> list[Saved]:
        """What an attempt carrying ``request`` may restore, in order: live ones, then retired ones."""
        if request and self.pending is not None and self.pending.id == request and not self.pending.target:
            return []
        target = self.pending.target if request and self.pending is not None else self.newest
        usable = [s for s in self.chain(target) if not self.quarantined(s)]
        return [s for s in usable if s.state == LIVE] + [s for s in usable if s.state == RETIRED]

    def why_rejected(self, body: Json) -> str:
        """Why a commit must not count, or empty."""
        attempt = self.attempts.get(body["attempt"])
        if attempt is None or not self.may_speak(attempt.number):
            return "an attempt that is fenced"
        if body["snapshot"] in self.saved or body["snapshot"] in self.rejected:
            return "a snapshot that exists"
        if body["parent"] != attempt.base or body["restoreRequest"] != attempt.request:
            return "another place in the lineage than its own"
        may_begin = attempt.fresh or not self.newest or self.restore["onMissing"] == "StartFresh"
        if not attempt.base and not may_begin:
            return "an attempt that silently begins anew"
        existing = self.same_step(attempt.base, body["step"])
        if body["replaces"] != (existing.id if existing else ""):
            return "a step that exists"
        if existing and self.configured and self.policy["overwrite"] != "Replace":
            return "a step that exists, against the policy"
        return ""

    def same_step(self, base: str, step: int) -> Saved | None:
        return next((s for s in self.chain(base) if s.step == step and s.state == LIVE), None)

    # Reading on

    def read(self, kind: str, body: Json, stored_at: float) -> None:
        getattr(self, f"_{kind}")(body, stored_at)

    def _state(self, snapshot: str) -> str:
        return self.saved[snapshot].state if snapshot in self.saved else ""

    def _RunClaimed(self, body: Json, _: float) -> None:  # noqa: N802 - named like the kind of entry
        self.owner = self.owner or "/".join(body["owner"][part] for part in ("cluster", "namespace", "name"))

    def _SavesIdentified(self, body: Json, _: float) -> None:  # noqa: N802
        """Says nothing of the state."""

    def _RunAdopted(self, body: Json, _: float) -> None:  # noqa: N802
        former, owner = ("/".join(body[who].values()) for who in ("previousOwner", "owner"))
        if self.owner == former:
            self.owner, self.fenced = owner, max(self.attempts, default=0)

    def _AttemptFenced(self, body: Json, _: float) -> None:  # noqa: N802
        if body["attempt"] == max(self.attempts, default=0):
            self.fenced = body["attempt"]

    def _RunConfigured(self, body: Json, _: float) -> None:  # noqa: N802
        if self.configured and self.configured[0] == body["uid"] and body["generation"] <= self.configured[1]:
            return
        was, now = self.restore["mode"], body["policy"]["restore"]["mode"]
        request = f"fresh-{body['uid'][:8]}-{body['generation']}"
        self.configured, self.policy = (body["uid"], body["generation"]), body["policy"]
        if (was, now) == ("Latest", "None") and request not in self.consumed:
            self.pending = Request(request, "")
        elif now == "Latest" and self.pending and not self.pending.target:
            self.pending = None

    def _RollbackRequested(self, body: Json, _: float) -> None:  # noqa: N802
        if body["request"] not in self.rollbacks and self._state(body["snapshot"]) in HELD:
            self.saved[body["snapshot"]].state = LIVE
            self.pending = Request(body["request"], body["snapshot"])
            self.rollbacks.add(body["request"])

    def _AttemptStarted(self, body: Json, stored_at: float) -> None:  # noqa: N802
        number, request = body["attempt"], body["restoreRequest"]
        if number == max(self.attempts, default=0) + 1:
            fresh = bool(request) and self.pending == Request(request, "")
            self.attempts[number] = Started(
                number, request, fresh, body["candidate"], body["continues"], heard_at=stored_at
            )

    def _RestoreStarted(self, body: Json, _: float) -> None:  # noqa: N802
        if body["attempt"] in self.attempts:
            self.attempts[body["attempt"]].in_use = body["snapshot"]

    def _RestoreFinished(self, body: Json, _: float) -> None:  # noqa: N802
        attempt, found = self.attempts.get(body["attempt"]), self.saved.get(body["snapshot"])
        if attempt is None or found is None:
            return
        if body["restored"]:
            attempt.restored = attempt.in_use = found.id
            # Only a claim that says how much it read, and that this was all of it.
            claimed = body["verified"] != "None" and body.get("comparedBytes", 0) >= found.bytes
            found.verified = found.verified or claimed
            found.compared = found.compared or (claimed and body["verified"] == "Checksums")
            found.failures = 0 if claimed and body["verified"] == "Checksums" else found.failures
        else:
            attempt.in_use = "" if attempt.in_use == found.id else attempt.in_use
            found.failures += body["evidence"] != "None"

    def _SnapshotCommitted(self, body: Json, stored_at: float) -> None:  # noqa: N802
        if self.why_rejected(body):
            self.rejected.add(body["snapshot"])
            return
        identifier, attempt = body["snapshot"], self.attempts[body["attempt"]]
        self.saved[identifier] = Saved(
            identifier, body["step"], body["path"], body["parent"], body["replaces"], body["bytes"], saved_at=stored_at
        )
        self.newest = attempt.last = identifier
        attempt.in_use, attempt.heard_at = "", stored_at
        if body["restoreRequest"]:
            self.consumed.add(body["restoreRequest"])
            if self.pending and self.pending.id == body["restoreRequest"]:
                self.pending = None

    def _SnapshotVerified(self, body: Json, _: float) -> None:  # noqa: N802
        found = self.saved.get(body["snapshot"])
        if found and body["passed"]:
            found.verified = True
            found.compared = found.compared or body["level"] == "Checksums"
            found.failures = 0 if body["level"] == "Checksums" else found.failures
        elif found:
            found.failures += body["evidence"] != "None"

    def _DispositionSet(self, body: Json, _: float) -> None:  # noqa: N802
        if body["snapshot"] in self.saved:
            self.saved[body["snapshot"]].disposition = body["disposition"]

    def _QuarantineReleased(self, body: Json, _: float) -> None:  # noqa: N802
        found = self.saved.get(body["snapshot"])
        if found and body["request"] not in found.releases:
            found.releases.add(body["request"])
            found.verified = found.verified and not found.failures
            found.compared = found.compared and not found.failures
            found.failures = 0

    def _SnapshotRetired(self, body: Json, stored_at: float) -> None:  # noqa: N802
        if self._state(body["snapshot"]) == LIVE:
            self.saved[body["snapshot"]].state = RETIRED
            self.saved[body["snapshot"]].retired_at = stored_at

    def _SnapshotReinstated(self, body: Json, _: float) -> None:  # noqa: N802
        if self._state(body["snapshot"]) == RETIRED:
            self.saved[body["snapshot"]].state = LIVE
            if body["attempt"] in self.attempts:
                self.attempts[body["attempt"]].in_use = body["snapshot"]

    def _PurgeStarted(self, body: Json, _: float) -> None:  # noqa: N802
        if self._state(body["snapshot"]) == RETIRED:
            self.saved[body["snapshot"]].state = PURGING

    def _SnapshotPurged(self, body: Json, _: float) -> None:  # noqa: N802
        if self._state(body["snapshot"]) == PURGING:
            self.saved[body["snapshot"]].state = PURGED

    def _SaveRequested(self, body: Json, _: float) -> None:  # noqa: N802
        """Asks; changes nothing that is promised."""

    def _SaveFailed(self, body: Json, _: float) -> None:  # noqa: N802
        """Tells; changes nothing that is promised."""

    def _EvictionNoticed(self, body: Json, _: float) -> None:  # noqa: N802
        """Tells; changes nothing that is promised."""
