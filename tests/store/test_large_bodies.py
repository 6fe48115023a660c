"""Parts and ranges under stress: stores that are busy, slow or silent, and callers that change their mind."""

from __future__ import annotations

import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import mean

import pytest

from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.common.ranges import read_range
from doubles.faulty_server import BUSY_WITH, Effect, Fault
from support.s3servers import SMALLEST_PART, Route

ALWAYS = 10_000
THREADS = 12
RANGE_BYTES = 1000

STRAGGLERS = 2
"""Requests whose answers have arrived and that the server has not put away yet."""

pytestmark = pytest.mark.store


# The decisions themselves are tested in test_pace.py, everywhere.
long_profile = pytest.mark.skipif(
    os.environ.get("CHECKPOINT_FAULTS") != "long", reason="counts requests at once, for which the machine must be quiet"
)


@pytest.fixture
def data() -> bytes:
    return secrets.token_bytes(300 * RANGE_BYTES)


def read_all(store: Store, key: str, size: int) -> bytes:
    """Range after range, from many threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        starts = range(0, size, RANGE_BYTES)
        return b"".join(pool.map(lambda start: read_range(store, key, start, RANGE_BYTES), starts))


@long_profile
def test_a_burst_of_refusals_lowers_concurrency_which_recovers(route: Route, folder: str, data: bytes) -> None:
    key = f"{folder}object"
    route.patient.put(key, data)
    store = type(route.patient)(route.server.settings(endpoint=route.proxy.endpoint, url=route.patient.url))
    late = Fault("GET", "object", "answer late", ALWAYS)
    route.proxy.faults.append(late)
    assert read_all(store, key, len(data)) == data
    before = mean(route.proxy.at_once[THREADS:])

    route.proxy.forget()
    route.proxy.faults += [Fault("GET", "object", (503, "SlowDown"), THREADS), late]
    assert read_all(store, key, len(data)) == data

    after = route.proxy.at_once[2 * THREADS :]
    assert mean(after[:20]) < 0.75 * before
    assert mean(after[-50:]) > 0.85 * before


@long_profile
def test_a_store_that_serves_few_requests_at_once_is_used_at_its_pace(route: Route, folder: str, data: bytes) -> None:
    key = f"{folder}object"
    route.patient.put(key, data)
    route.proxy.forget()
    route.proxy.faults.append(Fault("GET", "object", "be busy", ALWAYS))

    # Its timeout is shorter than the whole takes: what counts is the last success.
    assert read_all(route.hasty, key, len(data)) == data

    refused = route.proxy.count("GET", "object") - len(data) // RANGE_BYTES
    assert refused < len(data) // RANGE_BYTES, "more requests were served than refused"
    assert mean(route.proxy.at_once[-100:]) <= BUSY_WITH + STRAGGLERS


@pytest.mark.parametrize("effect", ["keep silent", "read slowly", (503, "SlowDown")], ids=str)
def test_an_abort_ends_parts_that_are_under_way_at_once_and_leaves_nothing(
    effect: Effect, route: Route, folder: str
) -> None:
    key, ended = f"{folder}object", list[StoreError]()
    route.proxy.faults.append(Fault("PUT", "partNumber=2", effect, ALWAYS))

    def write_the_second() -> None:
        try:
            upload.write_part(1, [bytes(SMALLEST_PART)])
        except StoreError as error:
            ended.append(error)

    with route.patient.upload(key, 3 * SMALLEST_PART) as upload:
        upload.write_part(0, [bytes(SMALLEST_PART)])
        thread = threading.Thread(target=write_the_second)
        thread.start()
        while not route.proxy.count("PUT", "partNumber=2"):
            time.sleep(0.01)
        begun = time.monotonic()
        upload.abort()
        assert time.monotonic() - begun < 1
        with pytest.raises(StoreError, match="aborted"):
            upload.write_part(2, [bytes(SMALLEST_PART)])
    thread.join()

    assert "aborted" in str(ended[0])
    assert route.patient.stat(key) is None
    assert route.server.open_uploads(f"{route.patient.url}/{folder}") == []


def test_a_store_that_takes_its_time_for_the_body_is_not_silent(route: Route, folder: str) -> None:
    """It takes longer than silence may last."""
    hasty = Timeouts(deadline_seconds=0.1, answer_seconds=0.4, body_seconds=5)
    store = type(route.patient)(route.server.settings(endpoint=route.proxy.endpoint), timeouts=hasty)
    route.proxy.faults.append(Fault("PUT", "partNumber", "read slowly", ALWAYS))

    with store.upload(f"{folder}object", 2 * SMALLEST_PART) as upload, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda index: upload.write_part(index, [bytes(SMALLEST_PART)]), range(2)))

    assert route.proxy.count("PUT", "partNumber") == 2
