"""Which rank stores which file of a folder, and what a restore puts into it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core.folder_index import (
    FolderIndex,
    IndexEntry,
    check_path,
    check_target,
    decode,
    differing_paths,
    encode,
    entries_for,
)
from checkpoint_sidecar.core.folder_plan import (
    ALONE_BYTES,
    PACK_BYTES,
    FolderPlan,
    ListedEntry,
    plan_folder,
    to_compare,
    with_digests,
)


def file(path: str, size: int = 10, **more: Any) -> ListedEntry:
    return ListedEntry(path, size=size, **more)


def objects(plan: FolderPlan) -> dict[str, tuple[str, ...]]:
    return {each.name: each.paths for each in plan.objects}


def load_of(plan: FolderPlan) -> dict[int, int]:
    found: dict[int, int] = {}
    for each in plan.objects:
        found[each.rank] = found.get(each.rank, 0) + each.size
    return found


def test_large_files_are_objects_of_their_own_and_spread_over_the_ranks() -> None:
    plan = plan_folder([[file(f"{n}", ALONE_BYTES * (1 + n)) for n in range(6)]], [[0, 1, 2]], None)
    assert all(len(paths) == 1 for paths in objects(plan).values())
    loads = load_of(plan)
    assert sorted(loads) == [0, 1, 2]
    assert max(loads.values()) <= 1.3 * min(loads.values())


def test_small_files_share_objects() -> None:
    plan = plan_folder([[file(f"{n:05}", 1000) for n in range(10_000)]], [[0, 1]], None)
    assert [len(each.paths) for each in plan.objects] == [5000, 5000]
    assert plan.index.size == 10_000_000


def test_files_in_memory_stay_with_the_rank_that_has_them() -> None:
    listing = [file("a", in_memory=True), file("b", 2 * ALONE_BYTES), file("c", 2 * ALONE_BYTES)]
    plan = plan_folder([listing], [[1, 3]], None)
    assert next(each.rank for each in plan.objects if each.paths == ("a",)) == 1


def test_files_without_a_digest_are_kept_for_each_folder() -> None:
    both = [[file("a")], [file("a")]]
    assert [each.folders for each in plan_folder(both, [[0], [1]], None).index.entries] == [(0,), (1,)]
    assert to_compare(both) == [{"a"}, {"a"}]
    equal = [with_digests(each, {"a": b"same"}) for each in both]
    (entry,) = plan_folder(equal, [[0], [1]], None).index.entries
    assert entry.folders == (0, 1)
    different = [with_digests(each, {"a": digest}) for each, digest in zip(both, (b"1", b"2"), strict=True)]
    assert len(plan_folder(different, [[0], [1]], None).index.entries) == 2


def test_only_files_of_one_path_size_and_mode_are_compared() -> None:
    listings = [[file("a"), file("b", 1), file("c", mode=0o600), file("d", 0)], [file("a"), file("b", 2), file("c")]]
    assert to_compare(listings) == [{"a"}, {"a"}]


def saved(listing: list[ListedEntry], ranks: list[int]) -> tuple[FolderIndex, list[ListedEntry]]:
    """The index of a snapshot, and the same listing a save later, when nothing has changed."""
    index = plan_folder([listing], [ranks], None).index
    places = {entry.path: entry for entry in index.entries}
    return index, [file(each.path, each.size, unchanged=places[each.path]) for each in listing]


def test_an_object_is_copied_if_all_of_its_files_are_unchanged() -> None:
    index, later = saved([file("a", 5), file("b", 6), file("large", ALONE_BYTES)], [0])
    plan = plan_folder([later], [[0]], index)
    assert sorted(each.copied_from for each in plan.objects) == ["__0_0.files", "__0_1.files"]
    assert {entry.path: entry.offset for entry in plan.index.entries} == {"a": 0, "b": 5, "large": 0}


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_an_object_of_which_a_file_changed_is_sent(change: str) -> None:
    index, later = saved([file("a", 5), file("b", 6), file("large", ALONE_BYTES)], [0])
    later = [file("b", 6) if each.path == "b" and change == "changed" else each for each in later]
    later = [each for each in later if each.path != "b" or change == "changed"]
    plan = plan_folder([later], [[0]], index)
    copied = {each.paths for each in plan.objects if each.copied_from}
    assert copied == {("large",)}


def test_nothing_is_copied_without_a_previous_snapshot() -> None:
    _, later = saved([file("large", ALONE_BYTES)], [0])
    assert not any(each.copied_from for each in plan_folder([later], [[0]], None).objects)


SIZES = st.one_of(st.integers(0, 100), st.integers(ALONE_BYTES - 1, ALONE_BYTES + 1), st.just(PACK_BYTES))


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=40), st.integers(1, 4), st.integers(1, 3))
def test_every_byte_has_one_place(sizes: list[tuple[int, bool]], ranks: int, folders: int) -> None:
    listing = [file(f"{n}", size, in_memory=small and 0 < size < 200) for n, (size, small) in enumerate(sizes)]
    shared = [[rank + ranks * number for rank in range(ranks)] for number in range(folders)]
    plan = plan_folder([listing] * folders, shared, None)
    decode(encode(plan.index), sizes={each.name: each.size for each in plan.objects}, subject="it")
    for number in range(folders):
        found = entries_for(plan.index, shared[number], folders=shared)
        assert [(entry.path, entry.size) for entry in found] == sorted((each.path, each.size) for each in listing)
    ends: dict[str, int] = {}
    for entry in sorted(plan.index.entries, key=lambda each: (each.object, each.offset)):
        if entry.size:
            assert entry.offset == ends.get(entry.object, 0)
            ends[entry.object] = entry.offset + entry.size
    assert ends == {each.name: each.size for each in plan.objects}
    for each in plan.objects:
        assert each.rank in shared[each.folder]


# Restoring elsewhere

TWO = FolderIndex(
    ((0, 1), (2, 3)),
    (
        IndexEntry("both", size=1, object="__0_0.files", folders=(0, 1)),
        IndexEntry("log", size=1, object="__0_1.files", folders=(0,)),
        IndexEntry("log", size=2, object="__2_0.files", folders=(1,)),
        IndexEntry("rank-2", size=3, object="__2_1.files", folders=(1,)),
    ),
)


def contents(ranks: list[int], folders: list[list[int]]) -> dict[str, int]:
    return {entry.path: entry.size for entry in entries_for(TWO, ranks, folders=folders)}


def test_folders_with_the_same_ranks_get_their_own() -> None:
    same = [[2, 3], [1, 0]]
    assert contents([1, 0], same) == {"both": 1, "log": 1}
    assert contents([2, 3], same) == {"both": 1, "log": 2, "rank-2": 3}


def test_other_folders_get_the_files_of_all_and_their_own_where_they_differ() -> None:
    assert contents([0], [[0]]) == {"both": 1, "log": 1, "rank-2": 3}
    assert contents([2], [[0], [1], [2]]) == {"both": 1, "log": 2, "rank-2": 3}
    assert contents([7], [[0], [7]]) == {"both": 1, "log": 1, "rank-2": 3}
    assert differing_paths(TWO) == ["log"]


def test_a_link_of_one_folder_takes_no_path_through_it_from_another() -> None:
    index = FolderIndex(((0,), (1,)), (IndexEntry("a", "Link", target="b"), IndexEntry("a/b", size=0, folders=(1,))))
    encode(index)
    assert [entry.path for entry in entries_for(index, [0, 1], folders=[[0, 1]])] == ["a"]


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a\0b", ".checkpoint-operator/a", "a" * 5000, "\udcff"]
)
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    assert check_path(path)


@pytest.mark.parametrize("path", ["a", "a b/ç", ".hidden", "...", "a/.checkpoint-operator", "-rf", "a\\b", "a\nb"])
def test_odd_paths_are_paths(path: str) -> None:
    assert not check_path(path)


@pytest.mark.parametrize(
    ("path", "target", "fine"),
    [
        ("a", "b", True),
        ("x/a", "../b", True),
        ("x/y/a", "../../b/./c", True),
        ("a", "../b", False),
        ("x/a", "../../b", False),
        ("x/a", "b/../../../c", False),
        ("a", "/etc/passwd", False),
        ("a", "", False),
        ("a", ".checkpoint-operator/x", False),
    ],
)
def test_targets_of_links_stay_below_the_folder(path: str, target: str, fine: bool) -> None:
    assert bool(check_target(path, target)) is not fine
