"""The engine's settings: defaults, what the environment says, and refusals that tell what would work."""

from __future__ import annotations

import pytest

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.engine.limits import EngineSettings, cores_of_rank
from checkpoint_sidecar.store.common.calls import DEFAULT_TIMEOUTS, LEAST_TRIES


def test_without_variables_the_defaults_hold() -> None:
    assert EngineSettings.from_environment({"CHECKPOINT_MEMORY": ""}) == EngineSettings(256 * 2**20, 16)


@pytest.mark.parametrize(
    ("text", "count"),
    [("64Mi", 64 * 2**20), ("2Gi", 2 * 2**30), ("1G", 10**9), ("131072Ki", 2**27), ("50000000", 50_000_000)],
)
def test_memory_is_a_quantity_of_bytes(text: str, count: int) -> None:
    assert EngineSettings.from_environment({"CHECKPOINT_MEMORY": text}).memory_bytes == count


def test_connections_are_a_number() -> None:
    assert EngineSettings.from_environment({"CHECKPOINT_CONNECTIONS": "4"}).connections == 4


def test_a_save_stalls_after_a_number_of_seconds() -> None:
    assert EngineSettings.from_environment({}).stall_seconds == 180
    assert EngineSettings.from_environment({"CHECKPOINT_STALL_SECONDS": "45.5"}).stall_seconds == 45.5


def test_a_request_that_only_reads_is_given_up_before_a_save_counts_as_stalled() -> None:
    assert (
        LEAST_TRIES * DEFAULT_TIMEOUTS.answer_seconds + DEFAULT_TIMEOUTS.deadline_seconds
        < EngineSettings().stall_seconds
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CHECKPOINT_MEMORY", "lots"),
        ("CHECKPOINT_MEMORY", "256MB"),
        ("CHECKPOINT_MEMORY", "-64Mi"),
        ("CHECKPOINT_MEMORY", "1Mi"),
        ("CHECKPOINT_CONNECTIONS", "0"),
        ("CHECKPOINT_CONNECTIONS", "1.5"),
        ("CHECKPOINT_CONNECTIONS", "1000"),
        ("CHECKPOINT_STALL_SECONDS", "0"),
        ("CHECKPOINT_STALL_SECONDS", "-1"),
        ("CHECKPOINT_STALL_SECONDS", "3m"),
        ("CHECKPOINT_STALL_SECONDS", "nan"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        EngineSettings.from_environment({name: text})


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [("", 1.0), ("1", 1.0), ("2", 0.5), ("0", 1.0), ("many", 1.0)],
    ids=["alone", "one rank", "two ranks share", "nonsense of zero", "nonsense in words"],
)
def test_ranks_of_one_machine_share_its_cores(ranks: str, expected: float) -> None:
    cores = cores_of_rank({})
    assert cores >= 1
    assert cores_of_rank({"LOCAL_WORLD_SIZE": ranks}) == max(1, int(cores * expected))
    assert cores_of_rank({"LOCAL_WORLD_SIZE": "100000"}) == 1


def test_beside_training_fewer_threads_begin() -> None:
    cores = cores_of_rank()
    assert EngineSettings().threads_at_first == cores
    assert EngineSettings(beside_training=True).threads_at_first == max(1, cores // 4)
