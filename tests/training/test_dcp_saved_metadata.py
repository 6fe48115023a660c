"""What ``dcp.save`` returns, and sends to every rank: an address, read only by a program that uses the metadata."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from checkpoint_sidecar.core.errors import CorruptSnapshotError, RestoreError
from checkpoint_sidecar.core.garbage import CollectionPause, collection_paused
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from checkpoint_sidecar.training.dcp.dropin import CheckpointReader, CheckpointWriter

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def save(path: Path | str, tensors: int = 300, **options: Any) -> Metadata:
    state = {f"layer.{number}.weight": torch.full((4,), float(number)) for number in range(tensors)}
    metadata = dcp.save(state, storage_writer=CheckpointWriter(path, **options))
    assert isinstance(metadata, Metadata)
    return metadata


def fields(metadata: Metadata) -> dict[str, Any]:
    return {field.name: getattr(metadata, field.name) for field in dataclasses.fields(metadata)}


def test_metadata_travels_in_a_few_bytes_however_much_was_saved(tmp_path: Path) -> None:
    few, many = (len(pickle.dumps(save(tmp_path / str(tensors), tensors))) for tensors in (1, 300))
    assert many < few + 10
    assert many < 300 + len(str(tmp_path))


def test_metadata_that_was_sent_is_read_when_it_is_used_and_equals_the_original(tmp_path: Path) -> None:
    metadata = save(tmp_path)
    sent = pickle.loads(pickle.dumps(metadata))
    assert not set(fields(metadata)) & set(vars(sent)), "it was read before it was used"
    stored = CheckpointReader(tmp_path).read_metadata()
    assert fields(sent) == fields(stored) | {"storage_meta": metadata.storage_meta}
    assert sent.storage_data == metadata.storage_data
    assert sent == copy.deepcopy(sent) == copy.copy(sent)
    assert copy.copy(sent).state_dict_metadata is sent.state_dict_metadata


def test_metadata_of_a_snapshot_that_is_gone_says_so(tmp_path: Path) -> None:
    sent = pickle.loads(pickle.dumps(save(tmp_path)))
    shutil.rmtree(tmp_path)
    with pytest.raises(RestoreError, match="the snapshot was deleted after it was saved"):
        _ = sent.state_dict_metadata


def test_metadata_that_was_damaged_is_refused(tmp_path: Path) -> None:
    sent = pickle.loads(pickle.dumps(save(tmp_path)))
    (stored,) = (path for path in tmp_path.rglob(".metadata") if path.parent != tmp_path)
    stored.write_bytes(stored.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptSnapshotError, match="differs from what was saved"):
        _ = sent.storage_data


def test_credentials_do_not_travel_with_metadata(tmp_path: Path) -> None:
    keys = Credentials.of({"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret"})
    settings = StoreSettings(tmp_path.as_uri(), credentials=keys)
    writer = CheckpointWriter(settings.url)
    sent = pickle.dumps(dcp.save({"x": torch.ones(1)}, storage_writer=writer))
    assert b"a-secret" not in sent
    assert b"settings" not in sent.lower()


def test_metadata_is_read_where_no_writer_is_left(tmp_path: Path) -> None:
    metadata = save(tmp_path)
    gc.collect()
    assert pickle.loads(pickle.dumps(metadata)).storage_data == metadata.storage_data


def test_the_collector_runs_again_when_the_last_of_several_pauses_ends() -> None:
    assert gc.isenabled()
    first, second = CollectionPause(), CollectionPause()
    first.begin()
    first.begin()
    thread = threading.Thread(target=second.begin)
    thread.start()
    thread.join()
    first.end()
    first.end()
    assert not gc.isenabled()
    second.end()
    assert gc.isenabled()


def test_a_collector_that_the_program_has_turned_off_stays_off() -> None:
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
