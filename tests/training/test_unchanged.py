"""``save.unchanged: Copy``: what did not change is not sent again, and every snapshot is whole by itself."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.core.errors import RequestRefusedError
from checkpoint_sidecar.core.log import RestoreFinished, SnapshotVerified
from checkpoint_sidecar.core.policy import RestorePolicy
from checkpoint_sidecar.engine.verify import verify_snapshot
from checkpoint_sidecar.training.dcp import writer
from training.adapted import BASE_BYTES, COPY, Adapted, Uploads, copied, saving, uploads
from training.checkpointer_runs import NO_SCHEDULE, RunStorage

__all__ = ["uploads"]

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def restored_bits(storage: RunStorage) -> list[bytes]:
    adapted = Adapted()
    with Checkpointer(adapted.state, storage.url) as checkpointer:
        found = checkpointer.restore()
    assert found is not None
    assert not found.skipped
    return adapted.bits()


def stock(reader: Any, like: Adapted) -> list[torch.Tensor]:
    """Parameters as torch's own reader finds them."""
    state = {f"model.{name}": torch.zeros_like(value) for name, value in like.model.state_dict().items()}
    dcp.load(state, storage_reader=reader)
    return list(state.values())


def settled(storage: RunStorage, step: int) -> Path:
    folder = Path(storage.url.removeprefix("file://"), storage.snapshot(step).commit.path)
    (file,) = folder.glob("__0_s*.distcp")
    return file


def test_frozen_parameters_are_sent_once(storage: RunStorage, uploads: Uploads) -> None:
    with saving(storage.url) as (_, step):
        for number in (1, 2, 3):
            step(number)
    whole = uploads.sent[0]
    assert whole > BASE_BYTES
    assert all(sent < whole / 50 for sent in uploads.sent[1:])
    assert [sent + saved for sent, saved in zip(uploads.sent, copied(storage), strict=True)] == [whole] * 3


def test_every_step_comes_back_bit_for_bit_without_the_others(storage: RunStorage) -> None:
    with saving(storage.url) as (adapted, step):
        for number in (1, 2, 3):
            step(number)
    for number in (1, 2):
        storage.store.delete([info.key for info in storage.store.list(f"step-{number}/")])
    assert restored_bits(storage) == adapted.bits()
    assert verify_snapshot(storage.store, storage.snapshot(3).commit, level="Checksums") > BASE_BYTES


def test_torchs_own_reader_reads_every_step(storage: RunStorage) -> None:
    seen = []
    with saving(storage.url) as (adapted, step):
        for number in (1, 2, 3):
            step(number)
            seen.append([value.clone() for value in adapted.model.state_dict().values()])
    for number, values in enumerate(seen, start=1):
        folder = f"{storage.url.removeprefix('file://')}/step-{number}"
        found = stock(dcp.FileSystemReader(folder), adapted)
        assert all(map(torch.equal, found, values))


def test_a_file_system_keeps_the_bytes_once(storage: RunStorage) -> None:
    with saving(storage.url) as (_, step):
        for number in (1, 2, 3):
            step(number)
    assert len({settled(storage, number).stat().st_ino for number in (1, 2, 3)}) == 1


def test_a_new_process_copies_in_its_first_save(storage: RunStorage, uploads: Uploads) -> None:
    with saving(storage.url) as (_, step):
        step(1)
    with saving(storage.url) as (adapted, step):
        step(2)
    assert uploads.sent[1] < uploads.sent[0] / 50
    assert restored_bits(storage) == adapted.bits()


def test_a_restore_that_compared_no_checksums_vouches_for_nothing(storage: RunStorage, uploads: Uploads) -> None:
    storage_policy: dict[str, Any] = {"save": COPY, "restore": RestorePolicy(verify="Sizes")}
    with saving(storage.url) as (_, step):
        step(1)
    storage.configure(**storage_policy)
    with saving(storage.url) as (_, step):
        step(2)
    assert uploads.sent[1] == uploads.sent[0]


def test_without_it_everything_is_sent_in_the_same_files_as_ever(storage: RunStorage, uploads: Uploads) -> None:
    with saving(storage.url, save=NO_SCHEDULE) as (_, step):
        for number in (1, 2):
            step(number)
    assert uploads.sent[1] == uploads.sent[0]
    assert copied(storage) == [0, 0]
    assert not list(Path(storage.url.removeprefix("file://")).glob("step-*/*/__0_s*"))


def test_the_policy_in_the_log_decides_from_save_to_save(storage: RunStorage, uploads: Uploads) -> None:
    with saving(storage.url, save=NO_SCHEDULE) as (_, step):
        step(1)
        for number in range(2, 5):
            storage.configure(number, save=COPY)
            step(number)
        storage.configure(5, save=NO_SCHEDULE)
        step(5)
    assert [saved > 0 for saved in copied(storage)] == [False, False, True, True, False]


def test_a_dense_model_is_sent_whole_and_not_hashed(storage: RunStorage, uploads: Uploads) -> None:
    dense = Adapted()
    dense.model.requires_grad_(True)
    dense.optimizer = torch.optim.AdamW(dense.model.parameters(), lr=0.05)
    dense.state["optim"] = dense.optimizer
    with saving(storage.url, dense) as (_, step):
        for number in range(1, 4):
            step(number)
    assert len(set(uploads.sent)) == 1
    assert copied(storage) == [0, 0, 0]


def test_a_parameter_that_thaws_is_sent(storage: RunStorage, uploads: Uploads) -> None:
    with saving(storage.url) as (adapted, step):
        for number in (1, 2):
            step(number)
        with torch.no_grad():
            adapted.layers[0][300, 300] += 1  # no sample shows it
        step(3)
        step(4)
    assert uploads.sent[2] > BASE_BYTES
    assert uploads.sent[3] < 0.3 * BASE_BYTES
    assert restored_bits(storage) == adapted.bits()


def test_another_dtype_of_the_same_bytes_is_sent(storage: RunStorage, uploads: Uploads) -> None:
    frozen = nn.Parameter(torch.ones(4 * 1024 * 1024, dtype=torch.bfloat16), requires_grad=False)
    with Checkpointer({"model": nn.ParameterList([frozen])}, storage.url, save=COPY) as checkpointer:
        checkpointer.restore()
        for step in (1, 2):
            checkpointer.save(step)
        frozen.data = frozen.data.view(torch.float16)
        checkpointer.save(3)
    assert [sent > frozen.nbytes for sent in uploads.sent] == [True, False, True]
    state = {"model.0": torch.zeros_like(frozen)}
    dcp.load(state, storage_reader=dcp.FileSystemReader(f"{storage.url.removeprefix('file://')}/step-3"))
    assert torch.equal(state["model.0"], frozen)


def test_a_base_that_was_deleted_meanwhile_is_sent_again(
    storage: RunStorage, uploads: Uploads, caplog: pytest.LogCaptureFixture
) -> None:
    with saving(storage.url) as (adapted, step):
        step(1)
        settled(storage, 1).unlink()
        step(2)
    assert uploads.sent[1] == uploads.sent[0]
    assert "cannot be copied" in caplog.text
    assert restored_bits(storage) == adapted.bits()


@pytest.mark.parametrize("how", ["replaced", "written in place", "cut off"])
def test_a_base_that_was_written_to_is_not_copied(storage: RunStorage, uploads: Uploads, how: str) -> None:
    with saving(storage.url) as (adapted, step):
        step(1)
        file = settled(storage, 1)
        times = file.stat()
        if how == "replaced":
            storage.damage(1, file.name)
        elif how == "written in place":
            with file.open("r+b") as stream:
                stream.seek(1000)
                stream.write(b"damage")
        else:
            os.truncate(file, times.st_size - 1)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        step(2)
    assert uploads.sent[1] == uploads.sent[0]
    assert restored_bits(storage) == adapted.bits()


def test_a_base_with_evidence_against_it_is_not_copied(storage: RunStorage, uploads: Uploads) -> None:
    with saving(storage.url) as (_, step):
        step(1)
        snapshot = storage.snapshot(1).id
        storage.append(SnapshotVerified(snapshot, "Sizes", passed=False, evidence="SizeMismatch"))
        step(2)
    assert uploads.sent[1] == uploads.sent[0]


def test_a_damaged_shared_file_is_evidence_when_it_is_restored(storage: RunStorage) -> None:
    with saving(storage.url) as (_, step):
        step(1)
        step(2)
    with settled(storage, 2).open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"damage")
    with pytest.raises(Exception, match=r"every snapshot|no snapshot"), saving(storage.url):
        pass
    assert {each.evidence for each in storage.bodies(RestoreFinished)} == {"ChecksumMismatch"}


def test_a_file_system_without_hard_links_is_asked_once(
    storage: RunStorage, uploads: Uploads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*names: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    with saving(storage.url) as (_, step):
        step(1)
        with monkeypatch.context() as patched:
            patched.setattr("checkpoint_sidecar.store.local.adapter.os.link", _only(refuses, ".distcp"))
            step(2)
        step(3)
    assert all(sent > BASE_BYTES for sent in uploads.sent)
    assert caplog.text.count("does not copy: every save sends all bytes") == 1


def _only(refusal: Any, ending: str) -> Any:
    link = os.link

    def chosen(source: Any, target: Any, **options: Any) -> None:
        (refusal if str(target).endswith(ending) else link)(source, target, **options)

    return chosen


def test_a_failed_save_does_not_become_a_base(
    storage: RunStorage, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    with saving(storage.url) as (adapted, step):
        step(1)
        with monkeypatch.context() as patched:
            patched.setattr(writer, "write_object", _full)
            with pytest.raises(Exception, match="No space left"):
                step(2)
        step(3)
    assert uploads.sent[2] < uploads.sent[0] / 50
    assert restored_bits(storage) == adapted.bits()


def _full(store: Any, key: str, data: bytes) -> None:
    raise RequestRefusedError("write", key, "No space left on device")


def test_what_a_save_says(storage: RunStorage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with saving(storage.url) as (_, step):
        step(1)
        assert "copied by the store" not in caplog.text
        step(2)
    (line,) = [each for each in caplog.messages if each.startswith("saved step 2")]
    assert "16.0 MiB of it copied by the store" in line or "16 MiB of it copied by the store" in line
