"""What every adapter owes its callers beyond the promises of the store behind it."""

from __future__ import annotations

import pytest

from checkpoint_sidecar.store.base import Buffer
from checkpoint_sidecar.store.conformance import Trial


@pytest.mark.parametrize("write", ["put", "put_if_absent", "upload"])
@pytest.mark.parametrize(
    "data", [b"bytes", bytearray(b"mutable"), memoryview(b"a view")[2:], memoryview(bytes(8)).cast("Q")]
)
def test_every_kind_of_buffer_is_written(trial: Trial, write: str, data: Buffer) -> None:
    key = trial.key("object")

    if write == "upload":
        with trial.store.upload(key) as upload:
            upload.write(data)
    else:
        getattr(trial.store, write)(key, data)

    assert trial.store.get(key, max_bytes=100).data == bytes(data)


def test_a_buffer_is_the_callers_again_once_it_was_written(trial: Trial) -> None:
    key, buffer = trial.key("object"), bytearray(b"first")

    with trial.store.upload(key) as upload:
        upload.write(buffer)
        buffer[:] = b"other"

    assert trial.store.get(key, max_bytes=100).data == b"first"


def test_abort_and_complete_may_be_called_early_and_again(trial: Trial) -> None:
    with trial.store.upload(trial.key("completed")) as upload:
        upload.write(b"data")
        upload.complete()
        upload.complete()
        upload.abort()
    with trial.store.upload(trial.key("aborted")) as upload:
        upload.write(b"data")
        upload.abort()
        upload.abort()

    assert [info.key for info in trial.store.list(trial.folder)] == [f"{trial.folder}completed"]


def begin_an_upload_and_fail(trial: Trial, key: str) -> None:
    with trial.store.upload(key) as upload:
        upload.write(b"data")
        raise KeyboardInterrupt


def test_a_block_left_by_an_exception_aborts_its_upload(trial: Trial) -> None:
    key = trial.key("object")

    with pytest.raises(KeyboardInterrupt):
        begin_an_upload_and_fail(trial, key)

    assert trial.store.stat(key) is None


def test_the_url_names_the_folder(trial: Trial) -> None:
    assert trial.store.url == trial.other.url
    assert not trial.store.url.endswith("/")
