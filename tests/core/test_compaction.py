"""Compactions: which are due, what they hold, and that hostile ones cost neither memory nor truth."""

from __future__ import annotations

import dataclasses
import datetime as dt
import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core import compaction
from checkpoint_sidecar.core.compaction import (
    MAX_COMPACTION_BYTES,
    SPANS,
    TAIL,
    EntryRange,
    RawEntry,
    due,
    longest_from,
    span_of,
    superseded,
)
from checkpoint_sidecar.core.errors import LogError
from checkpoint_sidecar.core.log import MAX_ENTRY_BYTES
from support.builders import BEGINNING
from support.longlogs import long_log

FIRST = EntryRange(1, 200)


def raw(count: int = 200, first: int = 1) -> list[RawEntry]:
    """Entries that only a container would take for such."""
    seconds = dt.timedelta(seconds=1)
    return [RawEntry(first + i, b"entry\n%d" % i, BEGINNING + i * seconds) for i in range(count)]


def packed(entries: list[RawEntry] | None = None) -> bytes:
    data = compaction.encode(entries or raw())
    assert data is not None
    return data


def altered(**header: Any) -> bytes:
    """A valid compaction with some fields of its index changed."""
    line, _, rest = gzip.decompress(packed()).partition(b"\n")
    return gzip.compress(json.dumps(json.loads(line) | header).encode() + b"\n" + rest)


@pytest.mark.parametrize(
    ("head", "existing", "expected"),
    [
        pytest.param(199, (), (), id="too few entries"),
        pytest.param(200, (), (FIRST,), id="the first 200"),
        pytest.param(203, (FIRST,), (), id="too few more"),
        pytest.param(399, (FIRST,), (EntryRange(201, 396),), id="some more entries"),
        pytest.param(399, (FIRST, EntryRange(201, 396)), (), id="nothing new"),
        pytest.param(400, (FIRST, EntryRange(201, 396)), (EntryRange(201, 400), EntryRange(1, 400)), id="200 more"),
        pytest.param(
            650,
            (),
            (FIRST, EntryRange(201, 400), EntryRange(401, 600), EntryRange(1, 600), EntryRange(601, 648)),
            id="a backlog",
        ),
        pytest.param(
            2000, [EntryRange(i + 1, i + 200) for i in range(0, 2000, 200)], (EntryRange(1, 2000),), id="ten of 200"
        ),
        pytest.param(
            2250,
            (EntryRange(1, 2000),),
            (EntryRange(2001, 2200), EntryRange(1, 2200), EntryRange(2201, 2248)),
            id="2,000 whose parts are gone",
        ),
        pytest.param(
            20_000, [EntryRange(i + 1, i + 2000) for i in range(0, 20_000, 2000)], (EntryRange(1, 20_000),), id="20,000"
        ),
    ],
)
def test_what_is_due(head: int, existing: tuple[EntryRange, ...], expected: tuple[EntryRange, ...]) -> None:
    assert due(head, set(existing)) == expected


def test_a_log_that_grows_has_few_compactions_to_write_and_a_reader_three_to_read_and_three_entries() -> None:
    existing: set[EntryRange] = set()
    most_due = most_read = most_replaced = 0
    for head in range(1, 45_000, 37):
        while planned := due(head, existing):
            most_due = max(most_due, len(planned))
            for span in planned:
                replaced = superseded(existing)
                most_replaced = max(most_replaced, len(replaced))
                existing = (existing - replaced) | {span}
        read, end = 0, 0
        while (found := longest_from(end + 1, existing)) is not None:
            read, end = read + 1, found.last
        assert head - end < (TAIL if head >= SPANS[0] else SPANS[0])
        most_read = max(most_read, read - head // SPANS[-1])
    # One that stays, one that it makes grow, and what is behind them.
    assert most_due == 3
    assert most_replaced <= 2
    assert most_read == 2
    assert len([span for span in existing if not span.stays]) <= 4


def test_what_a_longer_one_replaced_may_go_and_what_stays_never() -> None:
    staying = {FIRST, EntryRange(201, 400), EntryRange(1, 2000)}
    growing = {EntryRange(1, 400), EntryRange(2001, 2196), EntryRange(201, 396), EntryRange(1, 1800)}

    assert superseded(staying | growing) == growing - {EntryRange(2001, 2196)}


@pytest.mark.parametrize("size", SPANS)
def test_the_key_of_a_span_means_that_span(size: int) -> None:
    assert span_of(EntryRange(2 * size + 1, 3 * size).key) == EntryRange(2 * size + 1, 3 * size)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("_log/00000000000000000001.json", id="an entry"),
        pytest.param(EntryRange(1, 20_200).key, id="too long"),
        pytest.param(EntryRange(101, 300).key, id="another beginning"),
        pytest.param(EntryRange(201, 200).key, id="an end before the beginning"),
        pytest.param(EntryRange(0, 199).key, id="from entry 0"),
        pytest.param(FIRST.key + ".tmp", id="something appended"),
        pytest.param("_log-compacted/1-200.gz", id="too few digits"),
    ],
)
def test_other_objects_are_no_compactions(key: str) -> None:
    assert span_of(key) is None


@given(
    contents=st.lists(st.binary(min_size=1, max_size=50), min_size=200, max_size=200),
    stored_at=st.datetimes(
        min_value=dt.datetime(1970, 1, 1), max_value=dt.datetime(9000, 1, 1), timezones=st.just(dt.UTC)
    ),
)
def test_entries_come_back_byte_for_byte_with_their_times(contents: list[bytes], stored_at: dt.datetime) -> None:
    entries = [RawEntry(number, data, stored_at) for number, data in enumerate(contents, start=1)]
    assert list(compaction.unpack(packed(entries), FIRST)) == entries


def test_two_writers_make_the_same_bytes() -> None:
    assert packed() == packed()


def test_a_compaction_of_real_entries_is_a_quarter_of_their_size() -> None:
    entries = list(long_log(2000))
    assert len(packed(entries)) < 0.27 * sum(len(entry.data) for entry in entries)


def test_200_entries_of_the_largest_size_fit_and_more_are_not_compacted() -> None:
    largest = [dataclasses.replace(entry, data=b"x" * MAX_ENTRY_BYTES) for entry in raw()]
    assert list(compaction.unpack(packed(largest), FIRST)) == largest
    assert compaction.encode(largest * 2) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "cut off", id="nothing"),
        pytest.param(b"{}", "not a compaction", id="no gzip"),
        pytest.param(packed()[:-1], "cut off", id="cut off"),
        pytest.param(packed() + b"x", "something follows", id="something appended"),
        pytest.param(packed()[:-8] + b"\0" * 8, "incorrect data check", id="rot"),
        pytest.param(packed(raw(first=201)), "it holds entries 201 to 400", id="another span"),
        pytest.param(packed(raw(199)), "it holds entries 1 to 199", id="one entry short"),
        pytest.param(altered(sizes=[1] * 199), "its index does not match", id="one size short"),
        pytest.param(altered(storedAt=[1] * 201), "its index does not match", id="one time too many"),
        pytest.param(altered(sizes=[1] * 200), "its index does not match", id="wrong sizes"),
        pytest.param(altered(sizes=[-1] * 200), "not a compaction", id="negative sizes"),
        pytest.param(altered(storedAt=[10**30] * 200), "not a compaction", id="times beyond all calendars"),
        pytest.param(altered(format="2.0"), "it has format 2.0", id="a later major"),
        pytest.param(gzip.compress(b"["), "not a compaction", id="no index"),
        pytest.param(gzip.compress(b"[" * 100_000), "not a compaction", id="nested without end"),
        pytest.param(gzip.compress(bytes(MAX_COMPACTION_BYTES + 1)), "too large", id="a bomb"),
    ],
)
def test_what_is_no_compaction_is_refused_with_its_cause(data: bytes, message: str) -> None:
    with pytest.raises(LogError, match=message):
        list(compaction.unpack(data, FIRST))


def test_a_later_minor_with_more_fields_is_read() -> None:
    assert list(compaction.unpack(altered(format="1.9", added=[]), FIRST)) == raw()
