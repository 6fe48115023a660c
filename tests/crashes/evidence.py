"""What a crash has left in a run's store: what is whole, what torch's own reader sees, and what is not there."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.errors import ObjectNotFoundError
from checkpoint_sidecar.core.layout import parse_save_folder
from checkpoint_sidecar.core.run import Run, Snapshot, SnapshotState
from checkpoint_sidecar.engine.verify import verify_snapshot
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store

_FILE = re.compile(r"__[0-9]+_[0-9]+\.distcp|\.metadata|stock\.metadata|manifest\.json")
_POINTER = re.compile(r"(?:step-([0-9]+)/)?\.metadata")
_MOST_BYTES = 1 << 30


def contents(store: Store, prefix: str = "") -> dict[str, bytes]:
    """Every object and its bytes."""
    return {info.key: store.get(info.key, max_bytes=_MOST_BYTES).data for info in store.list(prefix)}


def saved(store: Store) -> dict[str, bytes]:
    """Every object of a save and its bytes, which must never change. Stock pointers do move."""
    return {key: data for key, data in contents(store, "step-").items() if layout.save_folder_of(key)}


def replayed(store: Store) -> Run:
    """The log's fold, from its first entry; a gap or a broken chain raises."""
    log = RunLog(store, writer="test")
    return log.refresh()


def live_steps(run: Run) -> list[int]:
    return [snapshot.step for snapshot in run.snapshots.values() if snapshot.live]


def check_nothing_is_out_of_place(store: Store, run: Run) -> None:
    """No object under a key that the layout does not know, and no snapshot or pointer that is not whole."""
    strangers = [info.key for info in store.list() if not _is_known(info.key)]
    assert not strangers, "objects under keys that the layout does not know"
    for snapshot in run.snapshots.values():
        if snapshot.live:
            verify_snapshot(store, snapshot.commit, level="Checksums")
    check_what_torch_sees(store, run)


def check_what_torch_sees(store: Store, run: Run) -> None:
    """Each step (or directory) that torch's own reader finds is a committed snapshot, and loads."""
    for info in store.list():
        match = _POINTER.fullmatch(info.key)
        if not match:
            continue
        step = int(match[1]) if match[1] else None
        pointer = store.get(info.key, max_bytes=_MOST_BYTES).data
        shown = [s for s in run.snapshots.values() if _published_bytes(store, s) == pointer]
        assert [s for s in shown if step in (None, s.step)], f"{info.key} shows no committed snapshot"
        with tempfile.TemporaryDirectory() as folder:
            for key, data in contents(store, info.key.removesuffix(layout.METADATA_NAME)).items():
                path = Path(folder, key)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            dcp_to_torch_save(Path(folder, info.key).parent, Path(folder, "whole.pt"))


def orphans(store: Store, run: Run) -> list[str]:
    """Objects of saves that were never committed, or were purged."""
    held = {s.commit.path for s in run.snapshots.values() if s.state is not SnapshotState.PURGED}
    folders = {info.key: layout.save_folder_of(info.key) for info in store.list()}
    return [key for key, folder in folders.items() if folder is not None and folder.path not in held]


def _published_bytes(store: Store, snapshot: Snapshot) -> bytes | None:
    try:
        return store.get(parse_save_folder(snapshot.commit.path).stock_metadata, max_bytes=_MOST_BYTES).data
    except ObjectNotFoundError:
        return None  # purged, or nearly


def _is_known(key: str) -> bool:
    if key.startswith(layout.LOG_FOLDER):
        return layout.log_number(key) is not None
    if (
        key in (layout.PROGRESS_KEY, layout.MARKER_KEY)
        or key.startswith(layout.PROBE_FOLDER)
        or _POINTER.fullmatch(key)
    ):
        return True
    return layout.save_folder_of(key) is not None and bool(_FILE.fullmatch(key.rpartition("/")[2]))
