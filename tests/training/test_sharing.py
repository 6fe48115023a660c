"""``save.unchanged: Share``: what did not change stays where it is, for as long as any snapshot needs it."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from checkpoint_sidecar import Checkpointer, CheckpointReader, open_run
from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core import removal
from checkpoint_sidecar.core.commits import shares_of
from checkpoint_sidecar.core.errors import CorruptSnapshotError, IncompatibleSnapshotError, SharedFilesLostError
from checkpoint_sidecar.core.log import RestoreFinished, SaveFailed, SnapshotVerified
from checkpoint_sidecar.core.policy import RestorePolicy, SavePolicy
from checkpoint_sidecar.core.sharing import distinct_bytes, left_bytes
from checkpoint_sidecar.engine.verify import read_manifest, verify_snapshot
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.training.dcp import writer
from training.adapted import BASE_BYTES, COPY, Adapted, Uploads, saving, uploads
from training.checkpointer_runs import NO_SCHEDULE, RunStorage, await_saves

__all__ = ["uploads"]

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SHARE = SavePolicy(every_steps=None, every_seconds=None, unchanged="Share")


def with_keyframes(every: int) -> SavePolicy:
    return msgspec.structs.replace(SHARE, keyframe_every=every)


def save_steps(storage: RunStorage, *steps: int, save: SavePolicy = SHARE) -> Adapted:
    with saving(storage.url, save=save) as (adapted, step):
        for number in steps:
            step(number)
    found: Adapted = adapted
    return found


def restored_bits(storage: RunStorage, **options: Any) -> list[bytes]:
    adapted = Adapted()
    with Checkpointer(adapted.state, storage.url, **options) as checkpointer:
        assert checkpointer.restore() is not None
    return adapted.bits()


def holders(storage: RunStorage, step: int) -> list[int]:
    """The steps whose files a snapshot shares."""
    run = storage.run
    return [run.snapshots[each.snapshot].step for each in shares_of(storage.snapshot(step).commit)]


def settled(storage: RunStorage, step: int) -> list[Path]:
    folder = Path(storage.url.removeprefix("file://"), storage.snapshot(step).commit.path)
    return sorted(folder.glob("__0_s*.distcp"))


def stored_bytes(store: Store) -> int:
    """What all saves take in the store, without their manifests."""
    infos = [info for info in store.list("step-") if info.key.count("/") == 2]
    return sum(info.size for info in infos if not info.key.endswith("manifest.json"))


def remove(storage: RunStorage, step: int) -> None:
    open_run(storage.url).remove(step, force=True, without_operator=True)


def test_frozen_parameters_are_sent_and_stored_once(storage: RunStorage, uploads: Uploads) -> None:
    save_steps(storage, 1, 2, 3)
    assert all(sent < uploads.sent[0] / 50 for sent in uploads.sent[1:])
    assert [holders(storage, step) for step in (1, 2, 3)] == [[], [1], [1]]
    assert [len(settled(storage, step)) for step in (1, 2, 3)] == [1, 0, 0]
    commits = [storage.snapshot(step).commit for step in (1, 2, 3)]
    assert [commit.copied_bytes for commit in commits] == [0, 0, 0]
    assert [commit.shared_bytes > BASE_BYTES for commit in commits] == [False, True, True]
    assert distinct_bytes([*storage.run.snapshots.values()]) == stored_bytes(storage.store)


def test_the_format_is_raised_only_where_files_are_shared(storage: RunStorage) -> None:
    save_steps(storage, 1, 2)
    first, second = (read_manifest(storage.store, storage.snapshot(step).commit) for step in (1, 2))
    assert (first.format, second.format) == (manifests.FORMAT, manifests.SHARING_FORMAT)
    shared = [file for file in second.files if file.shared_in]
    assert [file.shared_in for file in shared] == [storage.snapshot(1).commit.path]
    assert b'"in"' not in manifests.encode(first)


def test_every_step_comes_back_bit_for_bit_after_its_holder_was_purged(storage: RunStorage) -> None:
    adapted = save_steps(storage, 1, 2, 3)
    for step in (1, 2):
        remove(storage, step)
    assert [file.name for file in settled(storage, 1)] == ["__0_s0.distcp"]
    assert len(list(settled(storage, 1)[0].parent.iterdir())) == 1
    assert not list(Path(storage.url.removeprefix("file://"), storage.snapshot(2).commit.path).glob("*"))
    assert restored_bits(storage) == adapted.bits()
    assert verify_snapshot(storage.store, storage.snapshot(3).commit, level="Checksums") > BASE_BYTES
    run = storage.run
    assert sum(left_bytes(run, each) for each in run.snapshots.values()) == stored_bytes(storage.store)


@pytest.mark.parametrize("verify", ["Checksums", "Sizes", "None"])
def test_a_restore_finds_shared_files_however_it_verifies(storage: RunStorage, verify: Any) -> None:
    adapted = save_steps(storage, 1, 2)
    storage.configure(save=SHARE, restore=RestorePolicy(verify=verify))
    assert restored_bits(storage) == adapted.bits()


def test_files_that_a_purge_left_are_shared_further_and_go_with_their_last_user(storage: RunStorage) -> None:
    save_steps(storage, 1, 2)
    remove(storage, 1)
    adapted = save_steps(storage, 3)
    assert holders(storage, 3) == [1]
    assert restored_bits(storage) == adapted.bits()
    save_steps(storage, 4, save=NO_SCHEDULE)
    remove(storage, 2)
    assert settled(storage, 1)
    remove(storage, 3)
    assert not settled(storage, 1)
    run = storage.run
    assert stored_bytes(storage.store) == run.snapshots[storage.snapshot(4).id].own_bytes
    assert sum(left_bytes(run, each) for each in run.snapshots.values()) == stored_bytes(storage.store)


def test_torchs_own_reader_reads_every_step(storage: RunStorage) -> None:
    seen = []
    with saving(storage.url, save=SHARE) as (adapted, step):
        for number in (1, 2, 3):
            step(number)
            seen.append([value.clone() for value in adapted.model.state_dict().values()])
    for number, values in enumerate(seen, start=1):
        folder = f"{storage.url.removeprefix('file://')}/step-{number}"
        for reader in (dcp.FileSystemReader(folder), dcp.FsspecReader(f"file://{folder}")):
            state = {f"model.{name}": torch.zeros_like(value) for name, value in adapted.model.state_dict().items()}
            dcp.load(state, storage_reader=reader)
            assert all(map(torch.equal, state.values(), values))


def test_our_drop_in_refuses_a_path_that_leaves_the_folder(storage: RunStorage) -> None:
    adapted = save_steps(storage, 1, 2)
    state = {f"model.{name}": torch.zeros_like(value) for name, value in adapted.model.state_dict().items()}
    with pytest.raises(CheckpointException, match="outside the checkpoint"):
        dcp.load(state, storage_reader=CheckpointReader(f"{storage.url}/step-2"))


def test_a_new_process_shares_in_its_first_save(storage: RunStorage, uploads: Uploads) -> None:
    for step in (1, 2, 3):
        adapted = save_steps(storage, step)
    assert all(sent < uploads.sent[0] / 50 for sent in uploads.sent[1:])
    assert [holders(storage, step) for step in (2, 3)] == [[1], [1]]
    assert restored_bits(storage) == adapted.bits()


def test_a_keyframe_sends_everything(storage: RunStorage, uploads: Uploads) -> None:
    adapted = save_steps(storage, *range(1, 8), save=with_keyframes(3))
    assert [sent > BASE_BYTES for sent in uploads.sent] == [True, False, False, True, False, False, True]
    assert [holders(storage, step) for step in range(1, 8)] == [[], [1], [1], [], [4], [4], []]
    assert restored_bits(storage) == adapted.bits()


def test_keyframes_are_counted_across_restarts(storage: RunStorage, uploads: Uploads) -> None:
    for step in range(1, 5):
        save_steps(storage, step, save=with_keyframes(3))
    assert [sent > BASE_BYTES for sent in uploads.sent] == [True, False, False, True]


def test_a_parameter_that_thaws_leaves_its_file_and_the_rest_is_shared(storage: RunStorage, uploads: Uploads) -> None:
    with saving(storage.url, save=SHARE) as (adapted, step):
        for number in (1, 2):
            step(number)
        with torch.no_grad():
            for layer in adapted.layers[:2]:
                layer[300, 300] += 1  # no sample shows it
        for number in range(3, 8):
            step(number)
    assert uploads.sent[2] > BASE_BYTES
    assert uploads.sent[6] < uploads.sent[0] / 50
    assert len(holders(storage, 7)) == 2
    names = [file.name for file in read_manifest(storage.store, storage.snapshot(7).commit).files]
    assert len(set(names)) == len(names)
    assert restored_bits(storage) == adapted.bits()


def test_from_copies_to_shares_and_back_to_sending(storage: RunStorage, uploads: Uploads) -> None:
    with saving(storage.url, save=NO_SCHEDULE) as (adapted, step):
        for number, save in enumerate((COPY, COPY, SHARE, SHARE, COPY, NO_SCHEDULE), start=1):
            storage.configure(number, save=save)
            step(number)
    commits = [storage.snapshot(step).commit for step in range(1, 7)]
    assert [commit.copied_bytes > 0 for commit in commits] == [False, True, False, False, True, False]
    assert [commit.shared_bytes > 0 for commit in commits] == [False, False, True, True, False, False]
    assert restored_bits(storage) == adapted.bits()
    for number in range(1, 5):
        remove(storage, number)
    assert verify_snapshot(storage.store, commits[4], level="Checksums") > BASE_BYTES


def test_a_bit_flip_in_a_shared_file_takes_all_its_users_out_after_one_attempt(storage: RunStorage) -> None:
    keyframes = with_keyframes(4)
    with saving(storage.url, save=keyframes) as (adapted, step):
        for number in range(1, 4):
            step(number)
        step(4)
        bits = adapted.bits()
    # The keyframe of the second group, which 6, 7 and 8 share.
    save_steps(storage, 5, 6, 7, 8, save=keyframes)
    assert [holders(storage, number) for number in (5, 6, 7, 8)] == [[], [5], [5], [5]]
    damage(settled(storage, 5)[0])
    adapted = Adapted()
    with Checkpointer(adapted.state, storage.url, save=keyframes) as checkpointer:
        found = checkpointer.restore()
        assert found is not None
        assert found.step == 4
        assert found.skipped == (storage.snapshot(8).id,)
    assert adapted.bits() == bits
    tried = [each for each in storage.bodies(RestoreFinished) if not each.restored]
    assert [(each.snapshot, each.evidence) for each in tried] == [(storage.snapshot(8).id, "ChecksumMismatch")]
    assert tried[0].damaged_file == f"{storage.snapshot(5).commit.path}/__0_s0.distcp"
    assert [storage.snapshot(step).failures for step in (4, 5, 6, 7, 8)] == [0, 1, 1, 1, 1]


def damage(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes((byte[0] ^ 1,)))


def test_a_base_with_evidence_against_a_shared_file_is_sent_again(storage: RunStorage, uploads: Uploads) -> None:
    with saving(storage.url, save=SHARE) as (_, step):
        step(1)
        step(2)
        key = f"{storage.snapshot(1).commit.path}/__0_s0.distcp"
        first = storage.snapshot(1).id
        storage.append(SnapshotVerified(first, "Checksums", False, "ChecksumMismatch", damaged_file=key))
        step(3)
        step(4)
    assert [sent > BASE_BYTES for sent in uploads.sent] == [True, False, True, False]
    assert holders(storage, 4) == [3]


@pytest.mark.parametrize("how", ["gone", "written to", "cut off"])
def test_a_file_that_is_not_as_its_snapshot_left_it_is_sent_again(
    storage: RunStorage, uploads: Uploads, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with saving(storage.url, save=SHARE) as (adapted, step):
        step(1)
        (file,) = settled(storage, 1)
        if how == "gone":
            file.unlink()
        elif how == "written to":
            damage(file)
        else:
            os.truncate(file, file.stat().st_size - 1)
        step(2)
    assert uploads.sent[1] == uploads.sent[0]
    assert "it is not as its snapshot left it" in caplog.text
    assert restored_bits(storage) == adapted.bits()


def test_a_base_that_is_purged_while_a_save_shares_its_files_costs_that_save_only(
    storage: RunStorage, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    with saving(storage.url, save=SHARE) as (adapted, step):
        step(1)
        with monkeypatch.context() as patched:

            def purging(store: Store, key: str, data: bytes) -> None:
                write_object(store, key, data)
                first = storage.snapshot(1).id
                storage.log.append(partial(removal.retire_for_removal, snapshot=first))
                storage.log.append(partial(removal.start_removal, snapshot=first))

            patched.setattr(writer, "write_object", purging)
            with pytest.raises(SharedFilesLostError, match="was purged"):
                step(2)
        step(3)
    assert uploads.sent[2] == uploads.sent[0]
    assert not list(storage.store.list("step-2/"))
    assert restored_bits(storage) == adapted.bits()


def test_training_continues_when_an_automatic_save_loses_its_base_to_a_purge(
    storage: RunStorage, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = Adapted()

    def purging(store: Store, key: str, data: bytes) -> None:
        write_object(store, key, data)
        first = storage.snapshot(1).id
        storage.log.append(partial(removal.retire_for_removal, snapshot=first))
        storage.log.append(partial(removal.start_removal, snapshot=first))

    with Checkpointer(adapted.state, storage.url, save=msgspec.structs.replace(SHARE, every_steps=1)) as checkpointer:
        for step in checkpointer.steps(3):
            adapted.train()
            with monkeypatch.context() as patched:
                if step == 2:
                    patched.setattr(writer, "write_object", purging)
                checkpointer.step(step)
                await_saves()
    assert [snapshot.step for snapshot in storage.run.snapshots.values()] == [1, 3]
    assert uploads.sent[2] == uploads.sent[0]
    (failure,) = storage.bodies(SaveFailed)
    assert "was purged" in failure.message
    assert restored_bits(storage) == adapted.bits()


def test_a_manifest_that_shares_other_files_than_its_commit_is_refused(storage: RunStorage) -> None:
    save_steps(storage, 1, 2)
    commit = storage.snapshot(2).commit
    store = storage.store
    manifest = read_manifest(store, commit)
    files = tuple(msgspec.structs.replace(file, shared_in="") for file in manifest.files)
    data = manifests.encode(msgspec.structs.replace(manifest, files=files))
    store.put(f"{commit.path}/manifest.json", data)
    forged = msgspec.structs.replace(commit, manifest_digest=manifests.digest(data))
    with pytest.raises(CorruptSnapshotError, match="shares other files"):
        read_manifest(store, forged)


def test_versions_that_know_no_sharing_refuse_the_manifest(
    storage: RunStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(storage, 1, 2)
    monkeypatch.setattr(manifests, "_FORMATS", (manifests.FORMAT, manifests.FILES_FORMAT))
    assert read_manifest(storage.store, storage.snapshot(1).commit)
    with pytest.raises(IncompatibleSnapshotError, match="it has format 3, this version reads 1 to 2"):
        read_manifest(storage.store, storage.snapshot(2).commit)


def test_what_a_save_says(storage: RunStorage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    save_steps(storage, 1, 2)
    (line,) = [each for each in caplog.messages if each.startswith("saved step 2")]
    assert "16 MiB of it shared with earlier snapshots" in line.replace("16.0", "16")
