"""``save.unchanged: Copy`` in buckets: the server copies, and says what it copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.run import Snapshot
from checkpoint_sidecar.engine.verify import verify_snapshot
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from localcluster.objectstore import ObjectStore
from training.adapted import BASE_BYTES, Adapted, Uploads, saving, uploads

__all__ = ["uploads"]

pytestmark = [pytest.mark.store, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


@pytest.fixture(params=["seaweed", "moto", "google"])
def settings(request: pytest.FixtureRequest) -> StoreSettings:
    """A fresh prefix on a server that copies."""
    server: Any = request.getfixturevalue(request.param)
    found: StoreSettings = server.settings()
    return found


def commits(store: Store) -> list[Snapshot]:
    log = RunLog(store, writer="test")
    log.refresh()
    return sorted(log.run.snapshots.values(), key=lambda each: each.step)


def settled(store: Store, step: int) -> str:
    folder = commits(store)[step - 1].commit.path
    return next(info.key for info in store.list(f"{folder}/__0_s"))


def test_a_bucket_copies_what_did_not_change(settings: StoreSettings, uploads: Uploads) -> None:
    with saving(settings) as (_, step):
        for number in (1, 2):
            step(number)
    with saving(settings) as (adapted, step):
        step(3)
    store = open_store(settings)
    assert all(sent < uploads.sent[0] / 50 for sent in uploads.sent[1:])
    assert [each.commit.copied_bytes > BASE_BYTES for each in commits(store)] == [False, True, True]
    for number in (1, 2):
        store.delete([info.key for info in store.list(f"step-{number}/")])
    assert verify_snapshot(store, commits(store)[2].commit, level="Checksums") > BASE_BYTES
    again = Adapted()
    with Checkpointer(again.state, settings) as checkpointer:
        assert checkpointer.restore() is not None
    assert again.bits() == adapted.bits()


@pytest.mark.parametrize("how", ["damaged", "deleted"])
def test_a_base_that_is_not_what_was_committed_is_sent_again(
    settings: StoreSettings, uploads: Uploads, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(settings)
    with saving(settings) as (_, step):
        step(1)
        key = settled(store, 1)
        if how == "damaged":
            data = bytearray(store.get(key, max_bytes=1 << 26).data)
            data[len(data) // 2] ^= 0xFF
            store.put(key, data)
        else:
            store.delete([key])
        step(2)
        step(3)
    assert uploads.sent[1] == uploads.sent[0]
    assert uploads.sent[2] < uploads.sent[0] / 50
    assert "cannot be copied" in caplog.text
    assert verify_snapshot(store, commits(store)[1].commit, level="Checksums") > BASE_BYTES


def test_a_bucket_copies_what_did_not_change_and_torch_reads_every_step(object_store: ObjectStore) -> None:
    url, options = f"s3://{object_store.bucket()}/run", object_store.storage_options()
    seen = []
    with saving(url, storage_options=options) as (adapted, step):
        for number in (1, 2, 3):
            step(number)
            seen.append([value.clone() for value in adapted.model.state_dict().values()])
    for number, values in enumerate(seen, start=1):
        state = {f"model.{name}": torch.zeros_like(value) for name, value in adapted.model.state_dict().items()}
        reader = dcp.FsspecReader(f"{url}/step-{number}", **options)
        dcp.load(state, storage_reader=reader)
        assert all(map(torch.equal, state.values(), values))
