"""Keys: what is built can be parsed back, and nothing else can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core import layout
from checkpoint_sidecar.core.layout import SaveFolder

NONCES = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=8, max_size=8)
NUMBERS = st.integers(1, 10**18)
STEPS = st.integers(0, 10**18)
FOLDERS = st.builds(SaveFolder, st.none() | STEPS, NUMBERS, NONCES)


@given(NUMBERS)
def test_a_log_key_gives_its_number_back(number: int) -> None:
    assert layout.log_number(layout.log_key(number)) == number


@given(st.sets(NUMBERS))
def test_log_keys_sort_like_their_numbers(numbers: set[int]) -> None:
    assert sorted(map(layout.log_key, numbers)) == [layout.log_key(number) for number in sorted(numbers)]


@pytest.mark.parametrize(
    "key",
    [
        "_log/00000000000000000000.json",
        "_log/1.json",
        "_log/compacted-00000000000000001000.json",
        "_log/00000000000000000001.json.tmp",
        "_log/00000000000000000001.json\n",
        "a/_log/00000000000000000001.json",
        "_log/\u0661" + 19 * "0" + ".json",
        "_progress.json",
        "",
    ],
)
def test_a_stranger_in_the_folder_of_the_log_has_no_number(key: str) -> None:
    assert layout.log_number(key) is None


@given(FOLDERS)
def test_a_folder_gives_its_parts_back(folder: SaveFolder) -> None:
    assert layout.parse_save_folder(folder.path) == folder
    for key in (folder.manifest, folder.metadata, f"{folder.path}/__0_0.distcp"):
        assert layout.save_folder_of(key) == folder


def test_keys_look_as_documented() -> None:
    folder = SaveFolder(1000, 7, "abcdefgh")
    assert folder.path == "step-1000/0007-abcdefgh"
    assert folder.manifest == "step-1000/0007-abcdefgh/manifest.json"
    assert folder.metadata == "step-1000/0007-abcdefgh/.metadata"
    assert layout.pointer_key(folder.step) == "step-1000/.metadata"
    assert SaveFolder(None, 7, "abcdefgh").path == "0007-abcdefgh"
    assert layout.pointer_key(None) == ".metadata"
    assert layout.log_key(1) == "_log/00000000000000000001.json"


HOSTILE_FOLDERS = {
    "empty": "",
    "the root": "/",
    "absolute": "/step-1000/0007-abcdefgh",
    "a trailing slash": "step-1000/0007-abcdefgh/",
    "two slashes": "step-1000//0007-abcdefgh",
    "upwards": "step-1000/../0007-abcdefgh",
    "upwards at the end": "step-1000/0007-abcdefgh/..",
    "a step alone": "step-1000",
    "the log": "_log",
    "a line break": "step-1000/0007-abcdefgh\n",
    "a padded step": "step-00001000/0007-abcdefgh",
    "a step of two spellings": "step-01000/0007-abcdefgh",
    "an attempt of two spellings": "step-1000/00007-abcdefgh",
    "attempt 0": "step-1000/0000-abcdefgh",
    "foreign digits": "step-\u0661\u0660\u0660\u0660/0007-abcdefgh",
    "capitals": "step-1000/0007-ABCDEFGH",
    "a short nonce": "step-1000/0007-abcdefg",
    "a number without end": f"step-{'9' * 5000}/0007-abcdefgh",
    "an escape": "step-1000/0007-abcdefg%2e",
}


@pytest.mark.parametrize("path", HOSTILE_FOLDERS.values(), ids=HOSTILE_FOLDERS)
def test_a_folder_this_version_would_not_make_is_refused(path: str) -> None:
    """Nothing is read from it and, above all, nothing is deleted under it."""
    with pytest.raises(ValueError, match="is not the folder of a save"):
        layout.parse_save_folder(path)
    assert layout.save_folder_of(f"{path}/__0_0.distcp") is None


@given(st.text() | st.from_regex(layout._SAVE_FOLDER))
def test_what_parses_as_a_folder_is_spelled_in_the_only_way(path: str) -> None:
    try:
        folder = layout.parse_save_folder(path)
    except ValueError:
        return
    assert folder.path == path


@pytest.mark.parametrize("key", ["_progress.json", "step-1000/.metadata", "0007-abcdefgh/", "0007-abcdefgh", ""])
def test_an_object_outside_all_saves_belongs_to_none(key: str) -> None:
    assert layout.save_folder_of(key) is None


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "stock.metadata", "a", "A" * 127, "x=1_y-2.z"])
def test_a_plain_file_name_is_accepted(name: str) -> None:
    assert layout.check_file_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "/a",
        "a\\b",
        "a b",
        "a\n",
        "a%2f",
        "a\0",
        "-a",
        "ä",
        "A" * 128,
        "a:b",
        "../.metadata",
    ],
)
def test_a_file_name_that_some_store_would_reinterpret_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a file of a save"):
        layout.check_file_name(name)


def test_nonces_differ_and_fit_their_place() -> None:
    nonces = {layout.new_nonce() for _ in range(100)}
    assert len(nonces) == 100
    for nonce in nonces:
        assert layout.parse_save_folder(SaveFolder(1, 1, nonce).path).nonce == nonce
