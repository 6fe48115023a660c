"""Results that are kept while what they follow from stays the same: training asks the same in each of its saves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Given = TypeVar("Given")
Result = TypeVar("Result")


def digest_of(parts: Iterable[bytes]) -> bytes:
    """Return a digest of byte strings, one after the other, that no other ones have."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()


class Recent(Generic[Result]):
    """The last few results, by a digest of everything they follow from. Several threads may ask at the same time.

    Args:
        most: Number of results.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[bytes, tuple[Result]] = {}

    def get(self, digest: bytes, make: Callable[[], Result]) -> Result:
        """Return the result for a digest; make it if it is not among those that were asked for last."""
        kept = self._known.pop(digest, None) or (make(),)
        self._known[digest] = kept
        for old in list(self._known)[: -self._most]:
            self._known.pop(old, None)
        return kept[0]


def once_for_each(function: Callable[[Given], Result]) -> Callable[[Given], Result]:
    """Let a function run once for each object; its result is kept as long as the object exists."""
    known: WeakKeyDictionary[Given, Result] = WeakKeyDictionary()

    @wraps(function)
    def remembering(given: Given) -> Result:
        if given not in known:
            known[given] = function(given)
        return known[given]

    return remembering
