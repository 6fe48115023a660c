"""Circuit breakers: a store that does not answer is asked by one pass now and then, not by all of them all the time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

FAILURES = 3
"""Failures in a row that open a breaker."""

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 300.0
"""From opening a breaker to the first probe, and the longest time between probes; both are jittered."""

TRUSTED_SECONDS = 600.0
"""A namespace that reached a store within this time keeps asking, whatever others report of that store."""

PROBE_SECONDS = 120.0
"""A probe that has not reported within this time counts as failed."""

MAX_BREAKERS = 10_000


@dataclass(frozen=True, slots=True)
class Open:
    """A breaker that lets nothing through.

    Attributes:
        cause: What failed last.
        seconds: Until the next probe.
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
        self._cause = ""
        self.succeeded_at = float("-inf")

    @property
    def tripped(self) -> bool:
        """Whether it is open or half open."""
        return bool(self._wait)

    def judge(self) -> Open | None:
        """What keeps a pass from asking now, or None. Changes nothing."""
        rest = self._opens_at - self._clock()
        return Open(self._cause, rest) if self.tripped and rest > 0 else None

    def probe(self) -> None:
        """A pass asks: while half open, no other one does until it has reported."""
        if self.tripped:
            self._opens_at = self._clock() + PROBE_SECONDS

    def succeeded(self) -> None:
        self._failures = 0
        self._wait = 0.0
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
    """A pass may ask. ``probes`` names the breakers that were half open."""

    namespace: str
    target: Hashable
    probes: frozenset[Hashable] = frozenset()


class Breakers:
    """One breaker for each store's server, and one for each namespace at it.

    A namespace trips its own. That of the server holds only for namespaces that have not reached it lately: so a
    thousand new Checkpoints at a dead server cost a few requests, and nobody can talk a working store down for others.

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
        self.recovered = recovered
        self._breakers: dict[Hashable, _Breaker] = {}

    def ask(self, namespace: str, target: Hashable) -> Permit | Open:
        """Whether a pass may use a store now. One that may must ``report``."""
        own, shared = self._of((namespace, target)), self._of(target)
        trusted = self._clock() - own.succeeded_at < TRUSTED_SECONDS
        judged = [own] if trusted else [own, shared]
        for breaker in judged:
            refusal = breaker.judge()
            if refusal is not None:
                return refusal
        names = ((namespace, target),) if trusted else ((namespace, target), target)
        probes = frozenset(name for name, breaker in zip(names, judged, strict=True) if breaker.tripped)
        for breaker in judged:
            breaker.probe()
        return Permit(namespace, target, probes)

    def report(self, permit: Permit, cause: str) -> None:
        """How it went: empty when the store answered, whatever it said, else why it could not be reached."""
        was_open = False
        for name in ((permit.namespace, permit.target), permit.target):
            breaker = self._of(name)
            if cause:
                breaker.failed(cause, probe=name in permit.probes)
            else:
                was_open = was_open or breaker.tripped
                breaker.succeeded()
        if was_open:
            self.recovered(permit.target)

    def _of(self, name: Hashable) -> _Breaker:
        breaker = self._breakers.get(name)
        if breaker is None:
            if len(self._breakers) >= MAX_BREAKERS:
                self._breakers.pop(next(iter(self._breakers)))
            breaker = self._breakers[name] = _Breaker(self._clock)
        return breaker
