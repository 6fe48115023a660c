"""torchtitan's own checkpoint managers: ``install`` lets them keep checkpoints at a URL, each in a folder ``step-<N>``.

A manager asks four questions about paths, which later versions of torchtitan call ``CheckpointStorage``. The answers
here come from our own clients, and ``remove`` deletes nothing that a run still needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torchtitan.tools import filesystem

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.fsspec.storage_options import SCHEMES, settings_of
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training.dcp import dropin
from checkpoint_sidecar.training.dcp.restricted import Trust

_STEP = re.compile(r"step-(\d+)")
_ORIGINAL: dict[str, Callable[[Any], Any]] = {}


class CheckpointFolders:
    """What a manager needs to know of the folders below a URL; a ``CheckpointStorage`` of torchtitan."""

    def isdir(self, path: str) -> bool:
        """Return whether anything is stored below the path."""
        return next(iter(_open(path).list()), None) is not None

    def isfile(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return _open(folder).stat(name) is not None

    def listdir(self, path: str) -> list[str]:
        """Return the names right below the path."""
        return sorted({info.key.partition("/")[0] for info in _open(path).list()})

    def remove(self, path: str) -> None:
        """Delete a checkpoint and its log. Its ``.metadata`` goes first, so that no reader begins to read it.

        Raises:
            ConfigurationError: It is a snapshot of a run, whose retention decides on it.
            CheckpointError: No later checkpoint is whole.
        """
        parent, _, name = path.rstrip("/").rpartition("/")
        above = _open(parent)
        if next(iter(above.list(layout.LOG_FOLDER)), None) is not None:
            cause = f"it belongs to the run at {parent}, whose retention deletes snapshots"
            raise ConfigurationError("delete", path, cause, "Set keep_latest_k to 0, and retention.keepLast instead.")
        if (match := _STEP.fullmatch(name)) and not _later(above, int(match[1])):
            raise CheckpointError("delete", path, "no later checkpoint is whole", "It stays until one is.")
        store = _open(path)
        keys = [info.key for info in store.list()]
        store.delete([layout.METADATA_NAME])
        store.delete([key for key in keys if not key.startswith(layout.LOG_FOLDER)])
        store.delete(keys)


def install(*, trust: Trust = "safe") -> None:
    """Let torchtitan's own managers save to URLs and load from them. Call it before the trainer is built.

    Saves are those of ``checkpoint_sidecar.install``: atomic, and each folder a checkpoint for itself.
    ``keep_latest_k`` deletes only checkpoints that a later whole one follows, and none of a run's snapshots.

    Args:
        trust: See ``checkpoint_sidecar.install``.
    """
    dropin.install(trust=trust)
    folders = CheckpointFolders()
    serving = {
        "exists": folders.isdir,
        "isdir": folders.isdir,
        "isfile": folders.isfile,
        "listdir": folders.listdir,
        "rmtree": folders.remove,
    }
    for name, serve in serving.items():
        _ORIGINAL.setdefault(name, getattr(filesystem, name))
        setattr(filesystem, name, _for_urls(serve, _ORIGINAL[name]))


def uninstall() -> None:
    """Undo ``install``; harmless without it."""
    while _ORIGINAL:
        name, original = _ORIGINAL.popitem()
        setattr(filesystem, name, original)
    dropin.uninstall()


def _for_urls(serve: Callable[[str], Any], otherwise: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def served(path: Any) -> Any:
        scheme, separator, _ = str(path).partition("://")
        ours = separator and scheme in SCHEMES and "::" not in str(path)
        return serve(str(path)) if ours else otherwise(path)

    return served


def _open(path: str) -> Store:
    return open_store(settings_of(path.rstrip("/"), {}))


def _later(above: Store, step: int) -> bool:
    """Return whether a checkpoint of a later step is committed: only then it has a ``.metadata``."""
    steps = (layout.pointer_step(info.key) for info in above.list(layout.STEP_PREFIX))
    return any(found is not None and found > step for found in steps)
