"""What is copied instead of sent: whole files of tensors whose bytes did not change, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_sidecar.core import settled_files
from checkpoint_sidecar.core.unchanged import (
    MOST_CHANGES,
    SAVES_BETWEEN_LOOKS,
    PartHistory,
    SampledPart,
    SettledFile,
    SettledPart,
    TensorPart,
    arrange,
    history_of,
    settle,
    to_hash,
    to_sample,
)

State = Mapping[str, bytes]
"""Tensors by name. The first byte is what a sample shows."""


@dataclass
class Process:
    """One rank's saves. Every file that it stores is kept by the name of its save."""

    frozen: frozenset[str] = frozenset()
    least_bytes: int = 1
    most_bytes: int = 6
    history: PartHistory = field(default_factory=PartHistory)
    base: tuple[SettledFile, ...] = ()
    stored: dict[str, bytes] = field(default_factory=dict)
    sampled: list[str] = field(default_factory=list)
    hashed: list[str] = field(default_factory=list)
    sent: int = 0

    def save(self, state: State, *, committed: bool = True, base_is_there: bool = True) -> tuple[SettledFile, ...]:
        parts = [
            SampledPart(
                (name, ()), len(data), data[:1] if to_sample((name, ()), self.history) else b"", self.is_frozen(name)
            )
            for name, data in state.items()
        ]
        hashing = to_hash(parts, self.history)
        self.sampled = [each.part[0] for each in parts if each.sample]
        self.hashed = [each.part[0] for each in hashing]
        digests: dict[TensorPart, bytes] = {each.part: state[each.part[0]] for each in hashing}
        settled, self.history = settle(parts, digests, self.history)
        base = self.base if base_is_there else ()
        files = arrange(0, settled, base, least_bytes=self.least_bytes, most_bytes=self.most_bytes)
        stored = {file.name: b"".join(state[each.part[0]] for each in file.parts) for file in files}
        for file in files:
            if file.copied_from:
                assert self.stored[file.copied_from] == stored[file.name], (
                    "the copy has the bytes that were to be saved"
                )
        together = [each.part[0] for file in files for each in file.parts]
        assert len(set(together)) == len(together), "every tensor is in one file"
        self.sent = sum(map(len, state.values())) - sum(len(stored[file.name]) for file in files if file.copied_from)
        if committed:
            self.base, self.stored = files, stored
        return files

    def is_frozen(self, name: str) -> bool:
        return name in self.frozen

    def restart(self) -> Process:
        """Another process that has restored the latest snapshot."""
        files = tuple(found for file in self.base if (found := settled_files.decode(*_as_stored(file))))
        return Process(self.frozen, self.least_bytes, self.most_bytes, history_of(files), files, self.stored)


def _as_stored(file: SettledFile) -> tuple[str, bytes, int]:
    end = settled_files.encode(file.parts)
    return file.name, settled_files.list_in(end), file.size + len(end)


BASE = {f"layer{number}": bytes([number]) * 2 for number in range(4)}


@st.composite
def saves(draw: st.DrawFn) -> list[tuple[State, bool, bool, bool]]:
    """States, one after the other; whether each is committed; whether the base is still there; whether to restart."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True))
    values = st.binary(min_size=1, max_size=3)
    state = {name: draw(values) for name in names}
    found: list[tuple[State, bool, bool, bool]] = []
    for _ in range(draw(st.integers(1, 12))):
        for name in draw(st.lists(st.sampled_from(names), max_size=2)):
            state[name] = draw(values)
        gone = draw(st.lists(st.sampled_from(names), max_size=1))
        kept = {name: data for name, data in state.items() if name not in gone}
        found.append((kept, draw(st.booleans()), draw(st.integers(0, 4)) > 0, draw(st.integers(0, 5)) == 0))
    return found


@given(saves(), st.sets(st.sampled_from("abcdefgh")), st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=150)
def test_no_file_is_copied_whose_bytes_differ(
    history: list[tuple[State, bool, bool, bool]], frozen: set[str], least_bytes: int, most_bytes: int
) -> None:
    process = Process(frozenset(frozen), least_bytes, most_bytes)
    for state, committed, base_is_there, restarts in history:
        if restarts:
            process = process.restart()
        process.save(state, committed=committed, base_is_there=base_is_there)


def test_frozen_parameters_are_copied_from_the_second_save_on() -> None:
    process = Process(frozenset(BASE))
    sent = []
    for step in range(4):
        process.save(BASE | {"head": bytes([step])})
        sent.append(process.sent)
    assert sent == [9, 1, 1, 1]


def test_what_merely_does_not_change_is_copied_once_two_saves_had_the_same_bytes() -> None:
    process = Process()
    sent = []
    for step in range(6):
        process.save(BASE | {"head": bytes([step])})
        sent.append(process.sent)
    # The first save takes samples, the second hashes, the third puts them into files, the fourth copies these.
    assert sent == [9, 9, 9, 1, 1, 1]


def test_a_restart_copies_in_its_first_save() -> None:
    process = Process(frozenset(BASE))
    process.save(BASE)
    restarted = process.restart()
    restarted.save(BASE)
    assert restarted.sent == 0


def test_a_restart_with_another_division_sends_once() -> None:
    process = Process(frozenset(BASE))
    process.save(BASE)
    restarted = process.restart()
    halves = {name: data[:1] for name, data in BASE.items()}
    sent = []
    for _ in range(2):
        restarted.save(halves)
        sent.append(restarted.sent)
    assert sent == [4, 0]


def test_a_file_of_which_one_tensor_changes_is_sent_once() -> None:
    process = Process(frozenset(BASE), most_bytes=100)
    for _ in range(2):
        process.save(BASE)
    process.save(BASE | {"layer0": b"xx"})
    assert process.sent == 8
    process.save(BASE | {"layer0": b"yy"})
    assert process.sent == 2


def test_a_changing_state_is_sampled_a_few_times_and_never_hashed() -> None:
    process = Process()
    looked = []
    for step in range(SAVES_BETWEEN_LOOKS * 2 + 10):
        process.save({name: bytes([step]) * 2 for name in BASE})
        assert process.hashed == []
        if process.sampled:
            looked.append(step)
    first = list(range(MOST_CHANGES + 1))
    again = [number * SAVES_BETWEEN_LOOKS + after for number in (1, 2) for after in (0, 1)]
    assert looked == first + again


def test_a_tensor_whose_sample_stays_while_it_changes_is_left_alone_in_the_end() -> None:
    process = Process()
    hashed = 0
    for step in range(SAVES_BETWEEN_LOOKS):
        process.save({"embedding": b"s" + bytes([step])})
        hashed += len(process.hashed)
    assert hashed == MOST_CHANGES + 1


def test_what_freezes_late_is_found_at_the_next_look() -> None:
    process = Process()
    for step in range(SAVES_BETWEEN_LOOKS + 6):
        process.save({"x": bytes([min(step, 10)]) * 2})
    assert process.sent == 0


@pytest.mark.parametrize(("size", "files"), [(4, 0), (5, 1), (6, 1)])
def test_too_little_for_a_file_is_sent_with_what_changes(size: int, files: int) -> None:
    settled = [SettledPart((f"x{number}", ()), 1, b"d") for number in range(size)]
    assert len(arrange(0, settled, (), least_bytes=5, most_bytes=100)) == files


def test_files_are_no_larger_than_they_may_be() -> None:
    settled = [SettledPart((f"x{number}", ()), 3, b"d") for number in range(7)]
    files = arrange(2, settled, (), least_bytes=1, most_bytes=10)
    assert [(file.name, file.size) for file in files] == [
        ("__2_s0.distcp", 9),
        ("__2_s1.distcp", 9),
        ("__2_s2.distcp", 3),
    ]


def test_one_large_tensor_has_a_file_of_its_own() -> None:
    settled = [SettledPart(("small", ()), 1, b"d"), SettledPart(("large", ()), 20, b"d")]
    assert [file.size for file in arrange(0, settled, (), least_bytes=1, most_bytes=10)] == [1, 20]


@given(
    st.lists(
        st.tuples(st.text(), st.lists(st.integers(0, 2**63 - 1)), st.integers(0, 2**40)),
        min_size=1,
        unique_by=lambda each: each[0],
    )
)
def test_the_list_of_a_file_is_read_back(rows: list[tuple[str, list[int], int]]) -> None:
    parts = tuple(SettledPart((name, tuple(offsets)), size, b"d" * 16) for name, offsets, size in rows)
    assert settled_files.decode(*_as_stored(SettledFile("__0_s0.distcp", parts))) == SettledFile("__0_s0.distcp", parts)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_the_end_of_any_other_file_is_no_list(end: bytes, file_bytes: int) -> None:
    assert settled_files.decode("__0_s0.distcp", settled_files.list_in(end), file_bytes) is None


def test_a_list_that_does_not_fill_its_file_is_refused() -> None:
    name, data, size = _as_stored(SettledFile("__0_s0.distcp", (SettledPart(("x", ()), 10, b"d"),)))
    assert settled_files.decode(name, data, size + 1) is None
