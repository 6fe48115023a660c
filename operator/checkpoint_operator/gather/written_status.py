"""Statuses that this operator wrote, so that a watch notices when another writer changes one.

Otherwise a wiped status would stay wiped until the next complete pass: the generation counts changes of the spec only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

Object: TypeAlias = tuple[str, str, str]
"""Plural, namespace and name."""


class Statuses:
    """A digest for each object: an operator has tens of thousands of them."""

    def __init__(self) -> None:
        self._written: dict[Object, int] = {}

    def note(self, which: Object, status: Mapping[str, Any]) -> None:
        """Note a status before it is written, because the watch may be faster than the answer."""
        self._written[which] = _digest(status)

    def forget(self, which: Object) -> None:
        """Forget an object that is gone."""
        self._written.pop(which, None)

    def changed(self, which: Object, status: Mapping[str, Any] | None) -> bool:
        """Whether an object's status differs from the one this process wrote last. False if it never wrote one."""
        written = self._written.get(which)
        return written is not None and written != _digest(status or {})


def _digest(status: Mapping[str, Any]) -> int:
    return hash(json.dumps(status, sort_keys=True))
