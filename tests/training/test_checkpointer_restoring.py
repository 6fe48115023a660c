"""What a start restores, and what it does when it cannot; no operator anywhere."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
import torch

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import (
    ConfigurationError,
    IncompatibleSnapshotError,
    RestoreError,
    RestoreInterrupted,
    StoreError,
)
from checkpoint_sidecar.core.layout import parse_save_folder, pointer_key
from checkpoint_sidecar.core.log import (
    RestoreFinished,
    RollbackRequested,
    SnapshotRetired,
)
from checkpoint_sidecar.core.policy import RestorePolicy, SavePolicy
from checkpoint_sidecar.engine import verify
from checkpoint_sidecar.store.opening import open_store
from checkpoint_sidecar.training import checkpointer
from training.checkpointer_runs import RunStorage, Training, Watched

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


def test_a_damaged_snapshot_is_passed_over_with_evidence(storage: RunStorage, caplog: pytest.LogCaptureFixture) -> None:
    storage.train(4)
    storage.damage(4)
    assert storage.restored_step() == 2
    failed, restored = storage.bodies(RestoreFinished)
    assert (failed.snapshot, failed.restored, failed.evidence) == (storage.snapshot(4).id, False, "ChecksumMismatch")
    assert (restored.snapshot, restored.restored, restored.verified) == (storage.snapshot(2).id, True, "Checksums")
    assert f"skipping snapshot {failed.snapshot}" in caplog.text


def test_a_start_publishes_the_step_whose_save_was_killed_right_after_its_commit(storage: RunStorage) -> None:
    storage.train(2)
    published = storage.store.get(pointer_key(2), max_bytes=10**6).data
    storage.store.delete([pointer_key(2)])
    assert storage.restored_step() == 2
    assert storage.store.get(pointer_key(2), max_bytes=10**6).data == published


def test_a_start_continues_where_the_step_cannot_be_published(
    storage: RunStorage, caplog: pytest.LogCaptureFixture
) -> None:
    storage.train(2)
    storage.store.put(pointer_key(2), b"of another program")
    assert storage.restored_step() == 2
    assert storage.store.get(pointer_key(2), max_bytes=100).data == b"of another program"
    assert "step 2 is restored, but its stock .metadata is not published" in caplog.text


def restored_model(storage: RunStorage) -> RestoreFinished:
    """What a start says that has the model and no optimizer."""
    with Checkpointer({"model": Training().model}, storage.url) as checkpointer:
        assert checkpointer.restore() is not None
    found: RestoreFinished = storage.bodies(RestoreFinished)[-1]
    assert found.restored
    return found


def test_a_start_that_reads_a_part_of_a_snapshot_verifies_none_of_it(
    storage: RunStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.train(2)
    monkeypatch.setattr(verify, "_LITTLE_BYTES", 0)  # a real optimizer is never little
    claim = restored_model(storage)
    assert claim.verified == "None"
    assert isinstance(claim.compared_bytes, int)
    assert isinstance(claim.bytes, int)
    assert claim.compared_bytes < claim.bytes == storage.snapshot(2).commit.bytes
    assert storage.snapshot(2).verified == "None"


def test_what_a_start_left_out_is_read_for_the_claim_if_it_is_little(storage: RunStorage) -> None:
    storage.train(2)
    claim = restored_model(storage)
    assert (claim.verified, claim.compared_bytes) == ("Checksums", storage.snapshot(2).commit.bytes)


def test_damage_in_entries_that_a_start_left_out_stops_nothing_and_verifies_nothing(storage: RunStorage) -> None:
    storage.train(2)
    storage.damage(2, "stock.metadata")
    assert storage.restored_step() == 2
    assert storage.snapshot(2).verified == "None"


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        pytest.param("__0_0.distcp", "MissingObject", id="data"),
        pytest.param(".metadata", "MissingObject", id="metadata"),
        pytest.param("manifest.json", "MissingObject", id="manifest"),
    ],
)
def test_a_lost_object_is_evidence(storage: RunStorage, name: str, evidence: str) -> None:
    storage.train(4)
    storage.store.delete([f"{storage.snapshot(4).commit.path}/{name}"])
    assert storage.restored_step() == 2
    assert storage.bodies(RestoreFinished)[0].evidence == evidence


def test_a_manifest_that_another_version_committed_stops_the_start_and_says_upgrade(storage: RunStorage) -> None:
    """It is what was committed, so nothing is lost: the snapshot before would silently cost the steps in between."""
    storage.train(2)
    before, manifest = storage.snapshot(2), b'{"format": 2, "files": "elsewhere"}'
    folder = replace(parse_save_folder(before.commit.path), step=3, nonce="aaaaaaaa")
    storage.store.put(folder.manifest, manifest)
    storage.append(
        msgspec.structs.replace(
            before.commit,
            snapshot=f"3-{folder.attempt}-aaaaaaaa",
            step=3,
            path=folder.path,
            manifest_digest=manifests.digest(manifest),
            parent=before.id,
        )
    )
    for _ in range(3):
        with pytest.raises(IncompatibleSnapshotError, match="upgrade checkpoint-operator"):
            storage.restored_step()
    assert storage.snapshot(3).failures == 0


def test_when_every_snapshot_is_damaged_training_does_not_start_at_zero(storage: RunStorage) -> None:
    storage.train(4)
    storage.damage(2)
    storage.damage(4)
    for _ in range(3):  # also once both are quarantined
        with pytest.raises(RestoreError, match="does not start at step 0"):
            storage.train(6)
    assert storage.trained == [1, 2, 3, 4]


def test_a_restore_that_failed_is_not_followed_by_training_in_the_same_process(storage: RunStorage) -> None:
    storage.train(2)
    storage.damage(2)
    with Checkpointer(Training().state, storage.url) as failed:
        with pytest.raises(RestoreError):
            failed.restore()
        for call in (lambda: next(failed.steps(4)), lambda: failed.step(1)):
            with pytest.raises(ConfigurationError):
                call()


def test_a_fresh_start_uses_no_state_that_damaged_snapshots_left_in_memory(storage: RunStorage) -> None:
    storage.train(2)
    storage.configure(restore=RestorePolicy(on_missing="StartFresh", max_failures_per_snapshot=1))
    storage.damage(2)
    with pytest.raises(RestoreError, match="a fresh start needs a new process"):
        storage.train(3)
    storage.train(3)
    assert storage.trained == [1, 2, 1, 2, 3]


def test_no_more_snapshots_are_tried_than_the_policy_allows(storage: RunStorage) -> None:
    storage.train(8)
    storage.configure(restore=RestorePolicy(max_fallback=1))
    for step in (8, 6):
        storage.damage(step)
    with pytest.raises(RestoreError, match="maxFallback is 1"):
        storage.train(9)
    assert len(storage.bodies(RestoreFinished)) == 2


def test_a_retired_snapshot_is_the_last_resort(storage: RunStorage) -> None:
    storage.train(4)
    storage.append(SnapshotRetired(storage.snapshot(2).id, ("NoRuleKeepsIt",)))
    storage.damage(4)
    assert storage.restored_step() == 2
    assert storage.snapshot(2).live


def test_a_rollback_acts_once(storage: RunStorage) -> None:
    storage.train(6)
    storage.append(RollbackRequested("rollback-1", storage.snapshot(2).id))
    storage.train(3)
    storage.train(4)
    assert storage.trained == [1, 2, 3, 4, 5, 6, 3, 4]


def test_a_fresh_start_must_be_asked_for(storage: RunStorage, caplog: pytest.LogCaptureFixture) -> None:
    storage.train(2)
    storage.configure(restore=RestorePolicy(mode="None"), save=SavePolicy(every_steps=2))
    caplog.set_level(logging.INFO, "checkpoint_sidecar")
    storage.train(2)
    assert "nothing is restored, as the policy asks: starting at step 0" in caplog.messages
    storage.train(3)
    assert storage.trained == [1, 2, 1, 2, 3]


def test_without_any_snapshot_the_policy_may_forbid_a_fresh_start(storage: RunStorage) -> None:
    assert storage.restored_step() == 0
    storage.configure(restore=RestorePolicy(on_missing="Fail"))
    with pytest.raises(RestoreError, match="nothing was ever committed"):
        storage.train(1)


def test_a_snapshot_of_another_model_touches_nothing_and_is_not_blamed(storage: RunStorage) -> None:
    storage.train(2)
    other = Training(width=8)
    before = [p.detach().clone() for p in other.model.parameters()]
    with pytest.raises(IncompatibleSnapshotError):
        storage.train(3, other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.parameters(), strict=True))
    assert storage.bodies(RestoreFinished)[-1].evidence == "None"
    assert storage.snapshot(2).failures == 0


def test_reads_that_cannot_be_relied_on_interrupt_a_start_and_then_cost_it_a_snapshot_without_blame(
    storage: RunStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.train(4)
    newest, noise = storage.snapshot(4).commit.path, itertools.count(1)

    class Noisy(Watched):
        def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> None:
            self._store.read_into(key, start, buffers)
            if key == f"{newest}/__0_0.distcp":
                buffers[0][0] ^= next(noise) % 256

    monkeypatch.setattr(checkpointer, "open_store", lambda s: Noisy(open_store(s), lambda _: None))
    with pytest.raises(RestoreInterrupted, match="memory of this machine"):
        storage.restored_step()
    assert storage.restored_step() == 2, "as many starts as evidence would need"
    assert storage.snapshot(4).failures == 0
    monkeypatch.undo()
    assert storage.restored_step() == 4, "a machine that reads it well restores it"


def test_a_store_that_fails_interrupts_the_restore_and_blames_no_snapshot(
    storage: RunStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.train(2)

    class Unreadable(Watched):
        def read_into(self, key: str, *_: object) -> None:
            raise StoreError("read", key, "503 Slow Down")

    monkeypatch.setattr(checkpointer, "open_store", lambda s: Unreadable(open_store(s), lambda _: None))
    with pytest.raises(RestoreInterrupted, match="503 Slow Down"):
        storage.train(4)
    monkeypatch.undo()
    storage.train(4)
    assert storage.trained == [1, 2, 3, 4]
    assert [outcome.evidence for outcome in storage.bodies(RestoreFinished)] == ["None", "None"]
