"""Decides which objects under a prefix belong to the run: one rule for all deletions and replacements.

An object belongs to a run because of *proof*, never because its name fits: others save checkpoints with the same
library below the prefix of a run, and their folders look the same.

- The folder of a save belongs to the run if its name carries the run's identity, or if the run's log names it. Folders
  of version 0.1.0 and before carry no identity; those that no log entry names have no known owner.
- In such a folder, only files that saves write belong to the run.
- Objects in or below a folder with its own log do not, unless the run's log names it as a snapshot that holds data.
- The content of a stock pointer names the save that it shows, see ``core.pointers``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.compaction import span_of
from checkpoint_sidecar.core.layout import SaveFolder
from checkpoint_sidecar.core.run import Run, SnapshotState

HOLDS_DATA = (SnapshotState.LIVE, SnapshotState.RETIRED, SnapshotState.PURGING)

MAX_NAMED = 6
_MAX_PATH = 80


@dataclass(frozen=True, slots=True)
class Belongings:
    """Distinguishes a run's objects from others.

    Attributes:
        identity: The run's short identity; empty if unknown, and then names prove nothing.
        held: Folders of the snapshots that hold data, or files that others share.
        named: Folders of all commits in the log, including rejected and purged ones.
        nested: Folders with their own log, each with a slash at its end.
    """

    identity: str
    held: frozenset[str]
    named: frozenset[str]
    nested: frozenset[str]

    def save_of(self, key: str) -> SaveFolder | None:
        """Return the save of this run that the file belongs to, or None."""
        folder = layout.save_folder_of(key)
        if folder is None or not layout.is_save_file(key.rpartition("/")[2]):
            return None
        if folder.path in self.held:
            return folder
        proven = folder.path in self.named or (folder.run != "" and folder.run == self.identity)
        return folder if proven and self.nested.isdisjoint(_parents(key)) else None

    def owns(self, key: str) -> bool:
        """Return whether an object belongs to the run, except for stock pointers, whose content decides."""
        if key in (layout.PROGRESS_KEY, layout.MARKER_KEY) or layout.is_probe(key):
            return True
        if layout.log_number(key) is not None or span_of(key) is not None:
            return True
        return self.save_of(key) is not None


def belongings(run: Run, keys: Iterable[str]) -> Belongings:
    """Return the rule that distinguishes the objects of ``run`` from others.

    Args:
        keys: A listing, complete for the folders in question.
    """
    # A writer of this run never uses a path in another place, even if the log names one.
    commits = [s for s in run.snapshots.values() if "InvalidPath" not in s.reasons]
    return Belongings(
        identity=run.short_identity,
        held=frozenset(s.commit.path for s in commits if s.state in HOLDS_DATA or s.kept),
        named=frozenset(s.commit.path for s in commits),
        nested=nested_runs(keys),
    )


def nested_runs(keys: Iterable[str]) -> frozenset[str]:
    """Return the folders below the prefix with their own log: other runs, and checkpoints of the drop-in."""
    signs = (f"/{layout.LOG_FOLDER}", f"/{layout.COMPACTION_FOLDER}")
    found = {key[: at + 1] for key in keys for sign in signs if (at := key.find(sign)) > 0}
    return frozenset(found)


def traces(keys: Collection[str]) -> tuple[str, ...]:
    """Return the keys or folders that prove, without a log, that a run existed here and lost its log.

    Folders of saves count, unless they are in a folder with its own log. A bare ``step-N/.metadata`` does not: torch
    itself saves this way, so a new run may find it in its prefix.
    """
    nested = nested_runs(keys)
    found: dict[str, None] = {}
    for key in keys:
        folder = layout.save_folder_of(key)
        if key in (layout.PROGRESS_KEY, layout.MARKER_KEY) or span_of(key) is not None:
            found[key] = None
        elif folder is None or folder.step is None or not layout.is_save_file(key.rpartition("/")[2]):
            continue
        elif nested.isdisjoint(_parents(key)):
            found[f"{folder.path}/"] = None
    return tuple(found)


def unaccounted(run: Run, keys: Iterable[str]) -> tuple[str, ...]:
    """Return folders of saves by attempts missing from the log: it has lost the entries that began them."""
    folders = (layout.save_folder_of(key) for key in keys)
    ours = (folder for folder in folders if folder is not None and folder.run and folder.run == run.short_identity)
    return tuple(dict.fromkeys(f"{folder.path}/" for folder in ours if folder.attempt > run.highest_attempt))


class Foreign(Enum):
    """The kind of an object that does not belong to the run, according to its name."""

    NESTED = "has a run log of its own"
    UNPROVEN = "looks like a save, but nothing proves that this run wrote it"
    POINTER = "is a checkpoint's .metadata that this run did not write"
    OTHER = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """Foreign objects and stock pointers under the prefix of a run.

    Attributes:
        pointers: Steps that have a stock ``.metadata``, whether or not the run wrote it.
        foreign: Keys and folders that do not belong to the run, with their kinds.
    """

    pointers: frozenset[int] = frozenset()
    foreign: tuple[tuple[str, Foreign], ...] = ()

    def with_pointers(self, steps: Iterable[int]) -> Survey:
        """Return the survey with stock pointers added that turned out to be foreign."""
        known = dict(self.foreign)
        for step in sorted(steps):
            known.setdefault(layout.pointer_key(step), Foreign.POINTER)
        return Survey(self.pointers, tuple(known.items()))


def survey(run: Run, keys: Collection[str]) -> Survey:
    """Divide a complete listing of the prefix into the run's own objects and foreign ones."""
    ours = belongings(run, keys)
    pointers = frozenset(step for key in keys if (step := layout.pointer_step(key)) is not None)
    foreign: dict[str, Foreign] = {}
    for key in keys:
        if not ours.owns(key) and layout.pointer_step(key) is None:
            foreign.setdefault(*_kind(key, ours))
    return Survey(pointers, tuple(foreign.items()))


def describe(foreign: Collection[tuple[str, Foreign]]) -> str:
    """List foreign objects, up to a limit, for conditions, Events and errors."""
    # Known kinds first: ten thousand files of a data set must not hide another run.
    order = sorted(foreign, key=lambda each: (list(Foreign).index(each[1]), each[0]))
    named = [f"{_cut(path)} ({kind.value})" if kind.value else _cut(path) for path, kind in order[:MAX_NAMED]]
    more = [f"and {len(order) - MAX_NAMED} more"] if len(order) > MAX_NAMED else []
    return ", ".join([*named, *more])


def _kind(key: str, ours: Belongings) -> tuple[str, Foreign]:
    nested = [parent for parent in _parents(key) if parent in ours.nested]
    if nested:
        return nested[0], Foreign.NESTED
    folder = layout.save_folder_of(key)
    if folder is not None and layout.is_save_file(key.rpartition("/")[2]):
        return f"{folder.path}/", Foreign.UNPROVEN
    top, slash, _ = key.partition("/")
    return f"{top}{slash}", Foreign.OTHER


def _parents(key: str) -> Iterable[str]:
    """Yield the folders that contain a key, outermost first, each with a slash at its end."""
    at = key.find("/")
    while at >= 0:
        yield key[: at + 1]
        at = key.find("/", at + 1)


def _cut(path: str) -> str:
    return path if len(path) <= _MAX_PATH else f"{path[: _MAX_PATH - 1]}…"
