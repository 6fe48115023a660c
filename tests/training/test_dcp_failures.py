"""A save that fails commits nothing, cleans up what is certainly of no use, and says why in our own terms."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from checkpoint_sidecar.core.errors import (
    AccessDeniedError,
    CheckpointError,
    CheckpointExistsError,
    ConfigurationError,
    CorruptSnapshotError,
    FencedError,
    PrefixClaimedError,
    StoreError,
    UnknownOutcomeError,
)
from checkpoint_sidecar.training.dcp.errors import raising_ours, unwrap, upload_failed, wrapped
from checkpoint_sidecar.training.dcp.writer import SnapshotWriter
from doubles.memory import MemoryStore
from doubles.targets import RecordingTarget

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STATE = {"x": torch.ones(5), "y": "text"}


class FailingStore(MemoryStore):
    """Refuses to complete uploads of keys that end in ``suffix``."""

    suffix = "never"

    @contextmanager
    def upload(self, key: str, size: int) -> Iterator[Any]:
        with super().upload(key, size) as upload:
            yield upload
            if key.endswith(self.suffix):
                raise AccessDeniedError("upload", key, "403")


def attempt_save(store: MemoryStore, target: RecordingTarget, **options: Any) -> None:
    """As a caller should: our errors, and what is certainly of no use deleted."""
    writer = SnapshotWriter(store, target)
    with raising_ours("save step 7"):
        try:
            dcp.save(STATE, storage_writer=writer, **options)
        except CheckpointException as failure:
            writer.discard(failure)
            raise


@pytest.mark.parametrize("suffix", [".distcp", "/.metadata", "/stock.metadata", "/manifest.json"])
def test_a_failed_upload_leaves_no_object_and_no_commit(suffix: str) -> None:
    store, target = FailingStore(), RecordingTarget()
    store.suffix = suffix
    with pytest.raises(AccessDeniedError, match="403"):
        attempt_save(store, target)
    assert list(store.list()) == []
    assert target.committed == []
    assert len(target.abandoned) == 1


@pytest.mark.parametrize("refusal", [CheckpointExistsError, FencedError, PrefixClaimedError])
def test_a_save_that_is_not_admitted_uploads_nothing(refusal: type[CheckpointError]) -> None:
    store, target = MemoryStore(), RecordingTarget(refuse_begin=refusal("save", "step 7", "no"))
    with pytest.raises(refusal):
        attempt_save(store, target)
    assert list(store.list()) == []
    assert target.abandoned == []


@pytest.mark.parametrize("refusal", [CheckpointExistsError, FencedError, PrefixClaimedError])
def test_a_refused_commit_deletes_the_uploaded_files(refusal: type[CheckpointError]) -> None:
    store, target = MemoryStore(), RecordingTarget(refuse_commit=refusal("commit", "step 7", "no"))
    with pytest.raises(refusal):
        attempt_save(store, target)
    assert list(store.list()) == []
    assert target.abandoned == []


@pytest.mark.parametrize("failure", [UnknownOutcomeError, StoreError, CheckpointError])
def test_a_commit_that_may_stand_keeps_every_file(failure: type[CheckpointError]) -> None:
    store, target = MemoryStore(), RecordingTarget(refuse_commit=failure("commit", "step 7", "the reply was lost"))
    with pytest.raises(failure, match="the reply was lost"):
        attempt_save(store, target)
    assert len(list(store.list())) == 4


def test_leftovers_that_cannot_be_deleted_do_not_hide_why_the_save_failed(caplog: pytest.LogCaptureFixture) -> None:
    class Undeletable(FailingStore):
        def delete(self, keys: Any) -> None:
            if list(keys):
                raise StoreError("delete", "keys", "503")

    store, target = Undeletable(), RecordingTarget()
    store.suffix = "/.metadata"
    with pytest.raises(AccessDeniedError):
        attempt_save(store, target)
    assert "leftovers" in caplog.text


def test_a_value_that_cannot_be_saved_is_reported_as_an_ordinary_error() -> None:
    target = RecordingTarget()
    with pytest.raises(CheckpointError, match=r"rank 0.*Can't pickle"), raising_ours("save step 7"):
        dcp.save({"f": lambda: None}, storage_writer=SnapshotWriter(MemoryStore(), target))
    assert target.committed == []


def test_one_checkpoint_per_rank_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="use_collectives"):
        attempt_save(MemoryStore(), RecordingTarget(), use_collectives=False)


def test_a_coordinator_without_a_target_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no save folder"), raising_ours("save"):
        dcp.save(STATE, storage_writer=SnapshotWriter(MemoryStore(), None))


def test_the_error_that_matters_most_is_reported_whichever_rank_had_it() -> None:
    stored, fenced = StoreError("put", "key", "503"), FencedError("write", "attempt 1", "fenced")
    failure = CheckpointException(
        "write", {**upload_failed(0, stored).failures, **wrapped("write", 1, fenced).failures}
    )
    assert unwrap(failure, operation="save") is fenced


def test_an_interrupted_rank_is_not_turned_into_an_error() -> None:
    failure = CheckpointException("write", wrapped("write", 0, upload_failed(0, KeyboardInterrupt())).failures)
    assert unwrap(failure, operation="save") is None
    with pytest.raises(CheckpointException), raising_ours("save"):
        raise failure


@pytest.mark.timeout(20)
def test_an_error_can_be_printed_with_its_traceback() -> None:
    store = FailingStore()
    store.suffix = ".distcp"
    with pytest.raises(AccessDeniedError) as caught:
        attempt_save(store, RecordingTarget())
    assert "AccessDeniedError" in "".join(traceback.format_exception(caught.value))


def test_errors_keep_their_parts_when_ranks_send_them_to_each_other() -> None:
    error = CorruptSnapshotError("read", "key", "bad", "hint", evidence="SizeMismatch")
    copied = pickle.loads(pickle.dumps(upload_failed(3, error)))
    arrived = unwrap(copied, operation="load")
    assert isinstance(arrived, CorruptSnapshotError)
    assert (str(arrived), arrived.evidence) == (str(error), "SizeMismatch")
