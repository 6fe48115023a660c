"""Whatever bytes lie under a key of ours, a decoder returns a value or raises an error of ours."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from checkpoint_sidecar.core import compaction, heartbeat, log, manifest
from checkpoint_sidecar.core.errors import CheckpointError, CorruptSnapshotError, LogError
from checkpoint_sidecar.core.log import KINDS, StoredEntry
from checkpoint_sidecar.core.wire import MAX_INT64
from support.builders import BEGINNING, POD

GOLDEN = Path(__file__).parent / "golden"
SPAN = compaction.EntryRange(1, 200)

ENTRY = (GOLDEN / "SnapshotCommitted.json").read_bytes().rstrip(b"\n")
MANIFEST = manifest.encode(
    manifest.Manifest("100-1-abcdefgh", 100, 1, 2, (manifest.File("__0_0.distcp", 9, 1, b"\0\0\0\1"),), {"torch": "2"})
)
HEARTBEAT = heartbeat.encode(heartbeat.Heartbeat(3, 1200, "2026-01-01T00:00:00+00:00", (POD,)))
ENTRIES = [compaction.RawEntry(number, ENTRY, BEGINNING) for number in range(SPAN.first, SPAN.last + 1)]
COMPACTION = gzip.decompress(compaction.encode(ENTRIES) or b"")


def read_entry(data: bytes) -> object:
    return log.decode(data, number=7, stored_at=BEGINNING)


def read_manifest(data: bytes) -> object:
    return manifest.decode(data, expected_digest=manifest.digest(data), subject="manifest.json")


def read_compaction(data: bytes) -> object:
    return [entry.decode() for entry in compaction.unpack(gzip.compress(data, 1), SPAN)]


DECODERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "entry": (read_entry, ENTRY),
    "manifest": (read_manifest, MANIFEST),
    "compaction": (read_compaction, COMPACTION),
    "heartbeat": (heartbeat.decode, HEARTBEAT),
}

NESTED = b"[" * 100_000
ABSURD = st.sampled_from(
    [b"9" * 5000, b"1e400", b"-1", b"0.5", b"null", b"true", b"[]", b"{}", b'""', b'"\xff"', b'"\\ud800"', NESTED]
) | st.integers(2**31 - 1, 2**80).map(lambda number: str(number).encode())
"""JSON values, and what only looks like them, in place of one that was valid."""


def check(decoder: str, data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        DECODERS[decoder][0](data)


@pytest.mark.parametrize("decoder", DECODERS)
@given(data=st.binary(max_size=300))
@example(data=b"\xff")
@example(data=NESTED)
@example(data=b'{"format": "1.0", "x": "\xff"}')
def test_bytes_of_any_kind_are_a_value_or_an_error_of_ours(decoder: str, data: bytes) -> None:
    check(decoder, data)


@pytest.mark.parametrize("decoder", DECODERS)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_a_value_or_an_error_of_ours(decoder: str, at: int, bit: int) -> None:
    data = bytearray(DECODERS[decoder][1])
    data[at % len(data)] ^= 1 << bit
    check(decoder, bytes(data))


@pytest.mark.parametrize("decoder", ["manifest", "heartbeat", *KINDS])
@given(draw=st.data(), value=ABSURD)
def test_a_field_of_any_value_is_a_value_or_an_error_of_ours(decoder: str, draw: st.DataObject, value: bytes) -> None:
    valid = DECODERS[decoder][1] if decoder in DECODERS else (GOLDEN / f"{decoder}.json").read_bytes()
    tree = json.loads(valid)
    holder, name = draw.draw(st.sampled_from(list(_places(tree))))
    holder[name] = "HERE"
    check(decoder if decoder in DECODERS else "entry", json.dumps(tree).encode().replace(b'"HERE"', value))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every field and element of a JSON tree, by its holder."""
    names = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for name in names for place in ((tree, name), *_places(tree[name]))]


@pytest.mark.parametrize("bad", [b'"\xff"', NESTED, b"9" * 5000], ids=["invalid-utf-8", "nested", "a-huge-number"])
def test_an_entry_whose_body_cannot_be_decoded_is_an_unreadable_log(bad: bytes) -> None:
    with pytest.raises(LogError, match="entry 7 of the run log: it is not a "):
        read_entry(ENTRY.replace(b'"1000-7-abcdefgh"', bad, 1))


def test_a_number_that_no_status_could_show_is_refused_where_it_is_read() -> None:
    at_the_bound = ENTRY.replace(b'"bytes":123456789', f'"bytes":{MAX_INT64}'.encode())
    assert isinstance(read_entry(at_the_bound), StoredEntry)
    with pytest.raises(LogError, match="bytes"):
        read_entry(ENTRY.replace(b'"bytes":123456789', f'"bytes":{MAX_INT64 + 1}'.encode()))


def test_a_manifest_with_invalid_utf_8_is_damage_of_its_own_kind() -> None:
    damaged = MANIFEST.replace(b"100-1-abcdefgh", b"100-1-abcdef\xff\xff")
    with pytest.raises(CorruptSnapshotError):
        manifest.decode(damaged, expected_digest=manifest.digest(MANIFEST), subject="manifest.json")
    with pytest.raises(CheckpointError, match="not a manifest"):
        read_manifest(damaged)


@pytest.mark.parametrize("bad", [b"\xff", b'{"attempt": "\xff"}', NESTED, b'{"attempt": ' + b"9" * 5000])
def test_a_damaged_heartbeat_is_no_hint(bad: bytes) -> None:
    assert heartbeat.decode(bad) is None
