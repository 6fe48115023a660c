"""Which objects under a prefix belong to the run. One rule for everything that is deleted or replaced.

An object is a run's own because of what it *proves*, never because its name looks right: others save checkpoints
with the same library below the prefix of a run, and their folders look alike.

- The folder of a save belongs to the run if its name carries the run's identity, or if the run's log names it. Folders
  of version 0.1.0 and before carry no identity; those that no log entry names have no known owner.
- Of such a folder only what the writer of saves writes is the run's.
- Nothing in or below a folder that has a log of its own is, unless the log names it as a snapshot that holds data.
- A stock pointer says in its content which save it shows, see ``core.pointers``.
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
    """How to tell a run's objects from others.

    Attributes:
        identity: The run's, in its short form; empty when it is not known, and then no name proves anything.
        held: Folders of the snapshots that hold data.
        named: Folders of all commits in the log, rejected ones and purged ones too.
        nested: Folders with a log of their own, each with a slash at its end.
    """

    identity: str
    held: frozenset[str]
    named: frozenset[str]
    nested: frozenset[str]

    def save_of(self, key: str) -> SaveFolder | None:
        """The save of this run whose file this is, or None."""
        folder = layout.save_folder_of(key)
        if folder is None or not layout.is_save_file(key.rpartition("/")[2]):
            return None
        if folder.path in self.held:
            return folder
        proven = folder.path in self.named or (folder.run != "" and folder.run == self.identity)
        return folder if proven and self.nested.isdisjoint(_parents(key)) else None

    def owns(self, key: str) -> bool:
        """Whether an object is the run's; stock pointers excepted, which only their content can tell."""
        if key in (layout.PROGRESS_KEY, layout.MARKER_KEY) or layout.is_probe(key):
            return True
        if layout.log_number(key) is not None or span_of(key) is not None:
            return True
        return self.save_of(key) is not None


def belongings(run: Run, keys: Iterable[str]) -> Belongings:
    """Return how to tell the objects of ``run`` from others.

    Args:
        keys: A listing, complete for the folders that are asked about.
    """
    # A path that is not in its place was not made by a writer of this run, whatever the log says.
    commits = [s for s in run.snapshots.values() if "InvalidPath" not in s.reasons]
    return Belongings(
        identity=run.short_identity,
        held=frozenset(s.commit.path for s in commits if s.state in HOLDS_DATA),
        named=frozenset(s.commit.path for s in commits),
        nested=nested_runs(keys),
    )


def nested_runs(keys: Iterable[str]) -> frozenset[str]:
    """Folders below the prefix that have a log of their own: other runs, and checkpoints saved by the drop-in."""
    signs = (f"/{layout.LOG_FOLDER}", f"/{layout.COMPACTION_FOLDER}")
    found = {key[: at + 1] for key in keys for sign in signs if (at := key.find(sign)) > 0}
    return frozenset(found)


def traces(keys: Collection[str]) -> tuple[str, ...]:
    """Return the keys or folders that show, where there is no log, that a run was here and lost its log.

    Folders of saves count, unless they lie in a folder with a log of its own. A bare ``step-N/.metadata`` does not:
    that is how torch itself saves, and how a new run may well find its prefix.
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
    """Folders of saves by attempts of this run that its log does not have: the log lost the entries that began them."""
    folders = (layout.save_folder_of(key) for key in keys)
    ours = (folder for folder in folders if folder is not None and folder.run and folder.run == run.short_identity)
    return tuple(dict.fromkeys(f"{folder.path}/" for folder in ours if folder.attempt > run.highest_attempt))


class Foreign(Enum):
    """The kind of an object that is not the run's, as far as its name shows."""

    NESTED = "has a run log of its own"
    UNPROVEN = "looks like a save, but nothing proves that this run wrote it"
    POINTER = "is a checkpoint's .metadata that this run did not write"
    OTHER = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies under the prefix of a run besides its own objects.

    Attributes:
        pointers: Steps that have a stock ``.metadata``, whether or not the run wrote it.
        foreign: Keys and folders that are not the run's, with what they are.
    """

    pointers: frozenset[int] = frozenset()
    foreign: tuple[tuple[str, Foreign], ...] = ()

    def with_pointers(self, steps: Iterable[int]) -> Survey:
        """The same with stock pointers that proved to be others'."""
        known = dict(self.foreign)
        for step in sorted(steps):
            known.setdefault(layout.pointer_key(step), Foreign.POINTER)
        return Survey(self.pointers, tuple(known.items()))


def survey(run: Run, keys: Collection[str]) -> Survey:
    """Sort a complete listing of the prefix into the run's own and what others have put there."""
    ours = belongings(run, keys)
    pointers = frozenset(step for key in keys if (step := layout.pointer_step(key)) is not None)
    foreign: dict[str, Foreign] = {}
    for key in keys:
        if not ours.owns(key) and layout.pointer_step(key) is None:
            foreign.setdefault(*_kind(key, ours))
    return Survey(pointers, tuple(foreign.items()))


def describe(foreign: Collection[tuple[str, Foreign]]) -> str:
    """List objects that are not the run's, up to a limit, for conditions, Events and errors."""
    # Recognized kinds first: ten thousand files of a data set must not hide another run.
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
    """The folders a key is in, outermost first, each with a slash at its end."""
    at = key.find("/")
    while at >= 0:
        yield key[: at + 1]
        at = key.find("/", at + 1)


def _cut(path: str) -> str:
    return path if len(path) <= _MAX_PATH else f"{path[: _MAX_PATH - 1]}…"
