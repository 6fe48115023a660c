"""Parts fed in order through obstore, as Google Cloud Storage and Azure get them; here they go to S3 servers."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from checkpoint_sidecar.core.errors import AccessDeniedError, StoreError
from checkpoint_sidecar.store.obstore_bodies import StreamedBodies, StreamedUpload
from checkpoint_sidecar.store.obstore_store import ObstoreStore
from checkpoint_sidecar.store.ranges import read_range
from doubles.faulty_server import Fault
from s3servers import SMALLEST_PART, Route, Server

ALWAYS = 10_000
KEY = "step-7/object"

pytestmark = pytest.mark.store


def streamed(store: ObstoreStore, size: int) -> StreamedUpload:
    return StreamedBodies(store, store._calls).upload(KEY, size)


def write(store: ObstoreStore, *, parts: int) -> None:
    with streamed(store, parts * SMALLEST_PART) as upload:
        for index in range(parts):
            upload.write_part(index, [bytes(SMALLEST_PART)])


@pytest.fixture
def store(seaweed: Server) -> ObstoreStore:
    return ObstoreStore(seaweed.settings())


@pytest.mark.parametrize("size", [0, 5, SMALLEST_PART, 3 * SMALLEST_PART + 7], ids=str)
def test_parts_that_come_in_any_order_are_stored_in_theirs(store: ObstoreStore, size: int) -> None:
    data = memoryview(secrets.token_bytes(size))
    parts = [data[start : start + SMALLEST_PART] for start in range(0, size, SMALLEST_PART)]

    with streamed(store, size) as upload, ThreadPoolExecutor(max(1, len(parts))) as pool:

        def write_part(index: int) -> None:
            upload.write_part(index, [parts[index][:3], parts[index][3:]])

        list(pool.map(write_part, reversed(range(len(parts)))))

    assert read_range(store, KEY, 0, size) == data
    buffers = [bytearray(min(3, size)), bytearray(max(0, size - 3))]
    StreamedBodies(store, store._calls).read_into(KEY, 0, [memoryview(buffer) for buffer in buffers])
    assert b"".join(buffers) == data


def test_an_abort_leaves_nothing_and_ends_those_who_wait_for_their_turn(store: ObstoreStore, seaweed: Server) -> None:
    failures: list[StoreError] = []
    upload = streamed(store, 3 * SMALLEST_PART)

    def write_the_last() -> None:
        try:
            upload.write_part(2, [bytes(SMALLEST_PART)])
        except StoreError as error:
            failures.append(error)

    waiting = threading.Thread(target=write_the_last)
    with upload:
        upload.write_part(0, [bytes(SMALLEST_PART)])
        waiting.start()
        time.sleep(0.1)
        upload.abort()
    waiting.join(5)

    assert "aborted" in str(failures[0])
    assert store.stat(KEY) is None
    assert seaweed.open_uploads(store.url) == []


def test_a_part_that_is_refused_ends_the_upload(route: Route) -> None:
    if not isinstance(route.patient, ObstoreStore):
        pytest.skip("through obstore only")
    store = ObstoreStore(route.server.settings(endpoint=route.proxy.endpoint))
    route.proxy.faults.append(Fault("PUT", "partNumber=2", (403, "AccessDenied"), times=ALWAYS))

    with pytest.raises(AccessDeniedError):
        write(store, parts=3)

    assert store.stat(KEY) is None
    assert route.server.open_uploads(store.url) == []


def test_a_lost_reply_to_the_completion_is_no_failure(route: Route) -> None:
    if not isinstance(route.patient, ObstoreStore):
        pytest.skip("through obstore only")
    store = ObstoreStore(route.server.settings(endpoint=route.proxy.endpoint))
    route.proxy.faults.append(Fault("POST", "uploadId=", "lose the reply"))

    write(store, parts=2)

    info = store.stat(KEY)
    assert info is not None
    assert info.size == 2 * SMALLEST_PART
