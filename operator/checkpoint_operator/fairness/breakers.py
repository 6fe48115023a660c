"""Circuit breakers: a store that does not answer gets a probe now and then, not a request from every pass."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

FAILURES = 3
"""Failures in a row that open a breaker."""

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 300.0
"""Delay before the first probe of an open breaker, and maximum delay between probes; both are jittered."""

TURN_SECONDS = 0.5
MOST_SECONDS = 900.0
"""Delay between Checkpoints that return to an open breaker, and maximum wait of one of them."""

TRUSTED_SECONDS = 600.0
"""A tenant that reached its bucket within this time keeps asking, whatever others report of that server."""

ALIVE_SECONDS = 120.0
"""A server that any tenant reached within this time is not down, however many others fail to reach it."""

PROBE_SECONDS = 120.0
"""A probe that has not reported within this time counts as failed."""

MAX_BREAKERS = 10_000


@dataclass(frozen=True, slots=True)
class Open:
    """A breaker that lets nothing through.

    Attributes:
        cause: What failed last.
        seconds: Until the caller may ask again: after the next probe, one caller after the other.
    """

    cause: str
    seconds: float


class _Breaker:
    """Closed, open, or half open: then one pass may ask, and its outcome closes or opens it again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._wait = 0.0
        self._opens_at = float("-inf")
        self._last_turn = float("-inf")
        self._cause = ""
        self.succeeded_at = float("-inf")

    @property
    def tripped(self) -> bool:
        """Whether it is open or half open."""
        return bool(self._wait)

    def judge(self) -> Open | None:
        """Return what keeps a pass from asking now, or None."""
        return Open(self._cause, self._turn()) if self.tripped and self._clock() < self._opens_at else None

    def _turn(self) -> float:
        """Return the seconds until the next turn, so that a thousand Checkpoints do not return all at once."""
        now = self._clock()
        self._last_turn = max(self._opens_at, self._last_turn + TURN_SECONDS)
        if self._last_turn - now > MOST_SECONDS:
            return random.uniform(MOST_SECONDS / 2, MOST_SECONDS)  # noqa: S311 - spreads load
        return self._last_turn - now

    def probe(self) -> None:
        """Let one pass ask. While half open, no other pass may until it has reported."""
        if self.tripped:
            self._opens_at = self._clock() + PROBE_SECONDS

    def succeeded(self) -> None:
        self._failures = 0
        self._wait = 0.0
        self._last_turn = float("-inf")
        self.succeeded_at = self._clock()

    def failed(self, cause: str, *, probe: bool) -> None:
        self._failures += 1
        self._cause = cause
        if self._failures < FAILURES or (self.tripped and not probe):
            return  # passes that asked before it opened fail one after the other
        self.succeeded_at = float("-inf")
        self._wait = min(LONGEST_SECONDS, self._wait * 2 or FIRST_SECONDS)
        self._opens_at = self._clock() + random.uniform(self._wait / 2, self._wait)  # noqa: S311 - spreads load


@dataclass(frozen=True, slots=True)
class Permit:
    """A tenant may ask a server. ``probes`` names the breakers that were half open."""

    tenant: Hashable
    server: Hashable
    probes: frozenset[Hashable] = frozenset()


class Breakers:
    """One breaker for each server, and one for each tenant of it: a namespace and a bucket.

    A tenant trips its own. The server's breaker trips when no tenant reaches the server, and stops only tenants that
    have not reached it lately. So a thousand new Checkpoints at a dead server cost a few requests, and no tenant can
    talk a working store down for the others.

    Args:
        clock: Seconds, monotonic.
        recovered: Called with a server that answers again.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        recovered: Callable[[Hashable], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._recovered = recovered
        self._breakers: dict[Hashable, _Breaker] = {}

    def ask(self, server: Hashable, tenant: Hashable) -> Permit | Open:
        """Whether a tenant's pass may use its store now. One that may must ``report``."""
        own = self._of((server, tenant))
        judged: dict[Hashable, _Breaker] = {(server, tenant): own}
        if self._clock() - own.succeeded_at >= TRUSTED_SECONDS:
            judged[server] = self._of(server)
        for breaker in judged.values():
            refusal = breaker.judge()
            if refusal is not None:
                return refusal
        probes = frozenset(name for name, breaker in judged.items() if breaker.tripped)
        for breaker in judged.values():
            breaker.probe()
        return Permit(tenant, server, probes)

    def report(self, permit: Permit, cause: str) -> None:
        """Report a pass: why the store could not be reached, or an empty string if it answered at all."""
        own, shared = (permit.server, permit.tenant), permit.server
        if cause:
            self._of(own).failed(cause, probe=own in permit.probes)
            alive = self._clock() - self._of(shared).succeeded_at < ALIVE_SECONDS
            if not alive:
                self._of(shared).failed(cause, probe=shared in permit.probes)
            return
        was_open = [breaker.tripped for breaker in (self._of(own), self._of(shared))]
        self._of(own).succeeded()
        self._of(shared).succeeded()
        if any(was_open):
            self._recovered(permit.server)

    def _of(self, name: Hashable) -> _Breaker:
        breaker = self._breakers.get(name)
        if breaker is None:
            if len(self._breakers) >= MAX_BREAKERS:
                self._breakers.pop(next(iter(self._breakers)))
            breaker = self._breakers[name] = _Breaker(self._clock)
        return breaker
