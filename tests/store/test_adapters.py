"""What every adapter owes its callers beyond the promises of the store behind it."""

from __future__ import annotations

import os

import pytest

from checkpoint_sidecar.conformance.suite import Trial
from checkpoint_sidecar.store.base import Buffer, WidensParts
from checkpoint_sidecar.store.common import parts
from checkpoint_sidecar.store.common.parts import write_object
from support.s3servers import SMALLEST_PART


@pytest.mark.parametrize("write", ["put", "put_if_absent", "upload"])
@pytest.mark.parametrize(
    "data", [b"bytes", bytearray(b"mutable"), memoryview(b"a view")[2:], memoryview(bytes(8)).cast("Q")]
)
def test_every_kind_of_buffer_is_written(trial: Trial, write: str, data: Buffer) -> None:
    key = trial.key("object")

    if write == "upload":
        write_object(trial.store, key, data)
    else:
        getattr(trial.store, write)(key, data)

    assert trial.store.get(key, max_bytes=100).data == bytes(data)


@pytest.mark.parametrize("index", [-1, 1], ids=str)
def test_a_part_that_does_not_exist_is_refused(trial: Trial, index: int) -> None:
    with trial.store.upload(trial.key("object"), 4) as upload:
        with pytest.raises(ValueError, match="does not exist"):
            upload.write_part(index, [b"data"])
        upload.abort()


@pytest.mark.parametrize("data", [b"short", b"too long a part"], ids=["short", "long"])
def test_a_part_of_another_size_is_refused(trial: Trial, data: bytes) -> None:
    with trial.store.upload(trial.key("object"), 6) as upload:
        with pytest.raises(ValueError, match="has 6 bytes"):
            upload.write_part(0, [data])
        upload.abort()


def test_an_object_of_wide_parts_is_whole(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "WIDE_PARTS", 2)
    key, data = trial.key("object"), os.urandom(4 * SMALLEST_PART + 1)
    with trial.store.upload(key, len(data)) as upload:
        if isinstance(upload, WidensParts):
            upload.widen_parts()
            assert upload.part_bytes > SMALLEST_PART
        for index, start in enumerate(range(0, len(data), upload.part_bytes)):
            upload.write_part(index, [data[start : start + upload.part_bytes]])

    assert trial.store.get(key, max_bytes=len(data)).data == data


def test_an_upload_that_lacks_a_part_is_not_completed(trial: Trial) -> None:
    key = trial.key("object")
    with trial.store.upload(key, 2 * SMALLEST_PART) as upload:
        upload.write_part(0, [bytes(SMALLEST_PART)])
        with pytest.raises(ValueError, match="1 of 2 parts"):
            upload.complete()
        upload.abort()

    assert trial.store.stat(key) is None


def test_abort_and_complete_may_be_called_early_and_again(trial: Trial) -> None:
    with trial.store.upload(trial.key("completed"), 4) as upload:
        upload.write_part(0, [b"data"])
        upload.complete()
        upload.complete()
        upload.abort()
    with trial.store.upload(trial.key("aborted"), 4) as upload:
        upload.write_part(0, [b"data"])
        upload.abort()
        upload.abort()

    assert [info.key for info in trial.store.list(trial.folder)] == [f"{trial.folder}completed"]


def begin_an_upload_and_fail(trial: Trial, key: str) -> None:
    with trial.store.upload(key, 4) as upload:
        upload.write_part(0, [b"data"])
        raise KeyboardInterrupt


def test_a_block_left_by_an_exception_aborts_its_upload(trial: Trial) -> None:
    key = trial.key("object")

    with pytest.raises(KeyboardInterrupt):
        begin_an_upload_and_fail(trial, key)

    assert trial.store.stat(key) is None


def test_the_url_names_the_folder(trial: Trial) -> None:
    assert trial.store.url == trial.other.url
    assert not trial.store.url.endswith("/")
