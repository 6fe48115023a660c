"""The progress hint: what it says, and whose heartbeat makes a start wait."""

import pytest

from checkpoint_sidecar.core.heartbeat import Heartbeat, decode, encode, may_be_running
from checkpoint_sidecar.core.log import PodIdentity
from support.builders import POD, History

ELSEWHERE = (PodIdentity("llama-1", "u-new"),)


def test_a_heartbeat_survives_the_bucket() -> None:
    progress = Heartbeat(3, 1200, "2026-01-01T00:00:00+00:00", (POD,))
    assert decode(encode(progress)) == progress


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"attempt": 0, "step": 1, "time": ""}'])
def test_bytes_that_are_no_heartbeat_are_no_hint(data: bytes) -> None:
    assert decode(data) is None


def heartbeat(attempt: int = 1, *, ended: bool = False) -> Heartbeat:
    return Heartbeat(attempt, 100, "", (POD,), ended)


@pytest.mark.parametrize(
    ("history", "progress", "expected"),
    [
        pytest.param(History().started(), heartbeat(), True, id="same-attempt-in-other-pods"),
        pytest.param(History().started(), heartbeat(ended=True), False, id="it-said-goodbye"),
        pytest.param(History().started().started(), heartbeat(), False, id="it-is-fenced-already"),
        pytest.param(History().started().evicted(), heartbeat(), False, id="one-of-its-pods-is-evicted"),
        pytest.param(History(), heartbeat(), False, id="the-log-knows-no-attempt"),
    ],
)
def test_a_start_waits_only_for_an_attempt_that_may_still_train(
    history: History, progress: Heartbeat, expected: bool
) -> None:
    assert may_be_running(history.run, progress, pods=ELSEWHERE) is expected


def test_a_container_that_restarts_in_its_pod_does_not_wait_for_itself() -> None:
    assert not may_be_running(History().started().run, heartbeat(), pods=(POD, *ELSEWHERE))
