"""``save.unchanged: Share`` in buckets: nothing is sent or copied, and torch's own reader finds every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from checkpoint_sidecar import Checkpointer, open_run
from checkpoint_sidecar.core.policy import SavePolicy
from checkpoint_sidecar.core.run import Run
from checkpoint_sidecar.core.sharing import left_bytes
from checkpoint_sidecar.engine.verify import verify_snapshot
from checkpoint_sidecar.runs.log import RunLog
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.opening import open_store
from localcluster.objectstore import ObjectStore
from training.adapted import BASE_BYTES, Adapted, Uploads, saving, uploads

__all__ = ["uploads"]

pytestmark = [pytest.mark.store, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]

SHARE = SavePolicy(every_steps=None, every_seconds=None, unchanged="Share")


@pytest.fixture(params=["seaweed", "moto", "google", "azure"])
def settings(request: pytest.FixtureRequest) -> StoreSettings:
    """A fresh prefix; the last of these does not copy."""
    server: Any = request.getfixturevalue(request.param)
    found: StoreSettings = server.settings()
    return found


def run_in(store: Store) -> Run:
    return RunLog(store, writer="test").refresh()


def test_a_bucket_stores_once_what_did_not_change_and_loses_nothing_of_it(
    settings: StoreSettings, uploads: Uploads
) -> None:
    with saving(settings, save=SHARE) as (_, step):
        for number in (1, 2):
            step(number)
    with saving(settings, save=SHARE) as (adapted, step):
        step(3)
    store = open_store(settings)
    assert all(sent < uploads.sent[0] / 50 for sent in uploads.sent[1:])
    for number in (1, 2):
        open_run(settings).remove(number, force=True)
    run = run_in(store)
    newest = run.snapshots[run.newest or ""]
    assert newest.commit.shared_bytes > BASE_BYTES
    assert verify_snapshot(store, newest.commit, level="Checksums") == newest.commit.bytes
    data = [info for info in store.list("step-") if info.key.count("/") == 2 and not info.key.endswith("manifest.json")]
    assert sum(info.size for info in data) == sum(left_bytes(run, each) for each in run.snapshots.values())
    again = Adapted()
    with Checkpointer(again.state, settings) as checkpointer:
        assert checkpointer.restore() is not None
    assert again.bits() == adapted.bits()


def test_torch_reads_every_step_of_a_bucket_also_when_the_holder_was_purged(object_store: ObjectStore) -> None:
    url, options = f"s3://{object_store.bucket()}/some/run", object_store.storage_options()
    seen = {}
    with saving(url, save=SHARE, storage_options=options) as (adapted, step):
        for number in (1, 2, 3):
            step(number)
            seen[number] = [value.clone() for value in adapted.model.state_dict().values()]
    for removed in (0, 1):
        if removed:
            open_run(url, storage_options=options).remove(removed)
            del seen[removed]
        for number, values in seen.items():
            state = {f"model.{name}": torch.zeros_like(value) for name, value in adapted.model.state_dict().items()}
            dcp.load(state, storage_reader=dcp.FsspecReader(f"{url}/step-{number}", **options))
            assert all(map(torch.equal, state.values(), values))


def test_torch_reads_a_run_in_another_bucket_once_it_is_republished(object_store: ObjectStore) -> None:
    urls, options = (
        [f"s3://{object_store.bucket()}/{path}" for path in ("some/run", "r")],
        object_store.storage_options(),
    )
    with saving(urls[0], save=SHARE, storage_options=options) as (adapted, step):
        for number in (1, 2):
            step(number)
    old, run = (open_run(url, storage_options=options) for url in urls)
    for info in [*old.store.list()]:
        run.store.put(info.key, old.store.get(info.key, max_bytes=info.size).data)
        old.store.delete([info.key])
    values = [value.clone() for value in adapted.model.state_dict().values()]
    state = {f"model.{name}": torch.zeros_like(value) for name, value in adapted.model.state_dict().items()}
    with pytest.raises(CheckpointException):
        dcp.load(state, storage_reader=dcp.FsspecReader(f"{urls[1]}/step-2", **options))
    assert [each.step for each in run.republish()] == [2]
    dcp.load(state, storage_reader=dcp.FsspecReader(f"{urls[1]}/step-2", **options))
    assert all(map(torch.equal, state.values(), values))
    assert run.republish() == ()
    assert run.verify(2, checksums=True).passed
