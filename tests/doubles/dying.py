"""A store under whose user the process dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from checkpoint_sidecar.store.base import Store


class Killed(BaseException):
    """The process ends here; nothing may catch it."""


class DyingStore:
    """Passes calls on until call number ``at``, where the process is killed: before the call, or right after it."""

    def __init__(self, inner: Store, *, at: int, after: bool) -> None:
        self._inner = inner
        self._at = at
        self._after = after
        self.calls = 0

    @property
    def url(self) -> str:
        return self._inner.url

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        method = getattr(self._inner, verb)

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self._at and not self._after:
                raise Killed
            try:
                result = method(*arguments, **options)
                return list(result) if isinstance(result, Iterator) else result
            finally:
                if self.calls == self._at:
                    raise Killed  # also when the call failed: the process does not live to hear of it

        return call
