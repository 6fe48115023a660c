"""The library's side of a run without torch: real files, manifests and log entries, as rank 0 writes them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import crc32c
import msgspec

from checkpoint_sidecar.core import attempt, heartbeat, layout, manifest
from checkpoint_sidecar.core.commits import with_shares
from checkpoint_sidecar.core.log import (
    Owner,
    PodIdentity,
    RestoreFinished,
    RestoreStarted,
    SnapshotCommitted,
    SnapshotReinstated,
)
from checkpoint_sidecar.core.pointers import Origin
from checkpoint_sidecar.core.run import Run, Snapshot
from checkpoint_sidecar.engine.pointer import publish
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.parts import write_object
from support.builders import OWNER


class Trainer:
    """One process group that starts, restores, commits and reports progress.

    Args:
        store: Opened at the run's root.
        owner: The owner it trains for; claims the prefix if it is unclaimed.
    """

    def __init__(self, store: Store, owner: Owner = OWNER) -> None:
        self.store = store
        self.log = RunLog(store, writer="library test", timeout_seconds=10)
        self.log.append(lambda run: attempt.claim(run, owner, url=store.url))
        self.number = 0

    @property
    def run(self) -> Run:
        return self.log.refresh()

    def start(self, *pods: PodIdentity) -> Trainer:
        """The next attempt; restores what it announced, if anything."""
        self.log.append(lambda run: attempt.start(run, world_size=2, pods=pods))
        self.number = self.log.run.highest_attempt
        entry = self.log.append(lambda run: attempt.announce(run, self.number, ()))
        if entry is not None:
            assert isinstance(entry.body, RestoreStarted | SnapshotReinstated)
            size = self.log.run.snapshots[entry.body.snapshot].commit.bytes
            outcome = RestoreFinished(
                self.number,
                entry.body.snapshot,
                restored=True,
                verified="Checksums",
                seconds=1.5,
                bytes=size,
                compared_bytes=size,
            )
            self.log.append(lambda run: attempt.finish_restore(run, outcome))
        return self

    def commit(
        self,
        step: int,
        settled: Mapping[str, bytes] = MappingProxyType({}),
        shared: Mapping[str, Snapshot] = MappingProxyType({}),
        **changes: Any,
    ) -> Snapshot:
        """A save from its first file to its stock pointer.

        Args:
            settled: Contents of files of its own that later saves may share, by name.
            shared: The snapshots that stored files which this one shares, by name.
        """
        self.log.append(attempt.identify)
        folder = layout.SaveFolder(step, self.number, layout.new_nonce(), self.log.run.short_identity)
        identifier = layout.snapshot_id(step, self.number, folder.nonce)
        files = {
            "__0_0.distcp": bytes(700),
            "__1_0.distcp": bytes(300),
            layout.METADATA_NAME: b"metadata",
            **settled,
            layout.STOCK_METADATA_NAME: f"pointer to {identifier}".encode() + Origin(folder.run, identifier).encode(),
        }
        for name, data in files.items():
            write_object(self.store, f"{folder.path}/{name}", data)
        listed = [_file(name, data) for name, data in files.items()]
        for name, holder in shared.items():
            data = self.store.get(f"{holder.commit.path}/{name}", max_bytes=1 << 20).data
            listed.append(msgspec.structs.replace(_file(name, data), shared_in=holder.commit.path))
        described = manifest.Manifest(
            identifier,
            step,
            self.number,
            world_size=2,
            files=tuple(sorted(listed, key=lambda file: file.name)),
            format=manifest.SHARING_FORMAT if shared else manifest.FORMAT,
        )
        encoded = manifest.encode(described)
        self.store.put(folder.manifest, encoded)
        draft = SnapshotCommitted(
            snapshot=identifier,
            step=step,
            attempt=self.number,
            path=folder.path,
            manifest_digest=manifest.digest(encoded),
            bytes=described.size,
            files=len(listed),
            world_size=2,
            trigger="Schedule",
            seconds=2.5,
            **changes,
        )
        draft = with_shares(draft, described.shares)
        self.log.append(lambda run: attempt.commit(run, draft, overwrite="Never"))
        publish(self.store, self.log, step)
        return self.log.run.snapshots[identifier]

    def report(self, step: int) -> None:
        """How far this attempt has come."""
        sent = heartbeat.Heartbeat(self.number, step, dt.datetime.now(dt.UTC).isoformat())
        self.store.put(layout.PROGRESS_KEY, heartbeat.encode(sent))


def _file(name: str, data: bytes) -> manifest.File:
    checksum = crc32c.crc32c(data)
    return manifest.File(name, len(data), checksum, checksum.to_bytes(4, "big"))
