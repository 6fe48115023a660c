"""Lists of shared files: short, exact, and refused where they make no sense."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core.commits import SnapshotCommittedSharing
from checkpoint_sidecar.core.layout import settled_name
from checkpoint_sidecar.core.log import PurgeStarted
from checkpoint_sidecar.core.shared_files import MOST_FILES, SharedFiles, count_of, most_files_of, names_in, runs_of

NAMES = st.sets(st.builds(settled_name, st.integers(0, 12), st.integers(0, 5)), max_size=40)


@given(NAMES)
def test_names_come_back_from_runs(names: set[str]) -> None:
    assert names_in(runs_of(names)) == names
    assert count_of(runs_of(names)) == len(names)


@given(st.dictionaries(st.builds(settled_name, st.integers(0, 12), st.integers(0, 5)), st.integers(0, 9), min_size=1))
def test_sizes_come_back_with_their_names(sizes: dict[str, int]) -> None:
    shared = SharedFiles.of("100-1-abcdefgh", sizes)
    again = msgspec.json.decode(msgspec.json.encode(shared), type=SharedFiles)
    assert again == shared
    assert again.by_name == sizes
    assert (again.count, again.bytes) == (len(sizes), sum(sizes.values()))


def test_equal_ranks_take_one_run() -> None:
    names = {settled_name(rank, number) for rank in range(1024) for number in range(4)}
    assert runs_of(names) == "0-1023:0-3"
    assert runs_of(names - {settled_name(7, 2)}) == "7:0-1 0-6:0-3 8-1023:0-3 7:3"


@pytest.mark.parametrize(
    "files",
    [
        pytest.param("0-99999:0-99999", id="more names than fit into memory"),
        pytest.param("0:0-1", id="more names than sizes"),
        pytest.param("", id="no names"),
        pytest.param("1-0:0", id="a run that ends before it begins"),
        pytest.param("0:0,1", id="another spelling"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(files: str) -> None:
    data = msgspec.json.encode({"snapshot": "100-1-abcdefgh", "files": files, "sizes": [[7, 1]]})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(data, type=SharedFiles)


def test_a_purge_cannot_keep_more_than_a_snapshot_can_share() -> None:
    assert PurgeStarted("x", f"0-{MOST_FILES - 1}:0")
    with pytest.raises(ValueError, match="more than 4096 files"):
        PurgeStarted("x", f"0-{MOST_FILES}:0")


def test_a_snapshot_shares_a_limited_number_of_files_and_lists_each_holder_once() -> None:
    many = SharedFiles.of("100-1-abcdefgh", {settled_name(0, number): 1 for number in range(MOST_FILES)})
    one = SharedFiles.of("200-1-abcdefgh", {settled_name(0, 0): 1})
    for shares in ((many, one), (one, one)):
        with pytest.raises(ValueError, match=r"are shared|listed twice"):
            SnapshotCommittedSharing("3", 3, 1, "step-3", "ab" * 32, 1, 1, 1, shares=shares)


@pytest.mark.parametrize("world_size", [1, 3, 1024, 4096, 5000, 8192, 100_000])
def test_all_ranks_together_share_as_many_files_as_a_commit_can_list(world_size: int) -> None:
    quotas = [most_files_of(rank, world_size) for rank in range(world_size)]
    assert sum(quotas) == MOST_FILES
    assert max(quotas) - min(quotas) <= 1
