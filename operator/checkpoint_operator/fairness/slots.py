"""Limits how much of the operator one tenant, or one store, occupies at a time.

A slot is a running pass, or a thread that a pass abandoned because the store did not return. Use it only in the event
loop's thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

Target = Hashable
"""What a store's connections depend on; None while it is not known."""


class NoRoomError(Exception):
    """Raised inside a pass that turns out to need a busy store. The pass runs again when there is room.

    Attributes:
        target: That store.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target


@dataclass(frozen=True, slots=True)
class Caps:
    """Maximum of slots that are occupied at a time.

    Attributes:
        total: In the whole operator.
        namespace: Per namespace.
        target: Per store server, over all namespaces.
        tenant: Per namespace at one server.
    """

    total: int = 128
    namespace: int = 16
    target: int = 48
    tenant: int = 12


class Slots:
    """Counts the occupied slots.

    Attributes:
        freed: Called after a slot became free.
    """

    def __init__(self, caps: Caps | None = None) -> None:
        self._caps = caps or Caps()
        self.freed: Callable[[], None] = lambda: None
        self._total = 0
        self._namespaces: Counter[str] = Counter()
        self._targets: Counter[Target] = Counter()
        self._tenants: Counter[tuple[str, Target]] = Counter()

    def room(self, namespace: str, target: Target | None) -> bool:
        """Whether a pass over a Checkpoint of this namespace and store may begin."""
        return (
            self._total < self._caps.total
            and self._namespaces[namespace] < self._caps.namespace
            and self._room_at(namespace, target)
        )

    def take(self, namespace: str, target: Target | None) -> TenantSlot:
        """Occupy a slot."""
        self._total += 1
        self._namespaces[namespace] += 1
        self.enter(namespace, target)
        return TenantSlot(self, namespace, target)

    def enter(self, namespace: str, target: Target | None) -> None:
        """Count a slot at a store."""
        if target is not None:
            self._targets[target] += 1
            self._tenants[namespace, target] += 1

    def leave(self, namespace: str, target: Target | None) -> None:
        """Inverse of ``enter``."""
        if target is not None:
            _decrease(self._targets, target)
            _decrease(self._tenants, (namespace, target))

    def give(self, namespace: str, target: Target | None) -> None:
        """Inverse of ``take``."""
        self._total -= 1
        _decrease(self._namespaces, namespace)
        self.leave(namespace, target)
        self.freed()

    def _room_at(self, namespace: str, target: Target | None) -> bool:
        if target is None:
            return True
        return self._targets[target] < self._caps.target and self._tenants[namespace, target] < self._caps.tenant

    def may_enter(self, namespace: str, target: Target) -> bool:
        """Whether a running pass may use this store."""
        return self._room_at(namespace, target)


class TenantSlot:
    """One occupied slot, until its last holder releases it."""

    def __init__(self, slots: Slots, namespace: str, target: Target | None) -> None:
        self._slots = slots
        self._namespace = namespace
        self.target = target
        self._holders = 1

    def move(self, target: Target) -> bool:
        """Count at a store once it is known. Return False if that store has no room."""
        if target == self.target:
            return True
        if not self._slots.may_enter(self._namespace, target):
            return False
        self._slots.leave(self._namespace, self.target)
        self.target = target
        self._slots.enter(self._namespace, target)
        return True

    def hold(self) -> None:
        """Keep the slot until one more ``release``, for a thread that may outlive its pass."""
        self._holders += 1

    def release(self) -> None:
        """Release one hold; the last one frees the slot."""
        self._holders -= 1
        if not self._holders:
            self._slots.give(self._namespace, self.target)


def _decrease(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
