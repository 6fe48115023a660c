"""The manifest: believed only if it is the committed one and agrees with itself."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core import manifest as manifests
from checkpoint_sidecar.core.errors import CorruptSnapshotError, IncompatibleSnapshotError
from checkpoint_sidecar.core.manifest import BLOCK_BYTES, File, Manifest, block_bytes_for, decode, digest, encode

KEY = "step-1000/0007-abcdefgh/manifest.json"
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,20}", fullmatch=True).filter(lambda name: name != "manifest.json")


@st.composite
def files(draw: st.DrawFn) -> tuple[File, ...]:
    result = []
    for name in draw(st.sets(NAMES, max_size=5)):
        size = draw(st.integers(0, 5 * BLOCK_BYTES))
        blocks = -(-size // BLOCK_BYTES)
        checksums = draw(st.binary(min_size=4 * blocks, max_size=4 * blocks))
        result.append(File(name, size, draw(st.integers(0, 2**32 - 1)), checksums))
    return tuple(result)


MANIFESTS = st.builds(
    Manifest,
    snapshot=st.just("1000-7-abcdefgh"),
    step=st.integers(0, 10**12),
    attempt=st.integers(1, 10**6),
    world_size=st.integers(1, 10**6),
    files=files(),
    versions=st.dictionaries(st.sampled_from(["torch", "checkpoint-operator"]), st.text(max_size=20)),
)
GOOD = Manifest("1000-7-abcdefgh", 1000, 7, 2, (File("__0_0.distcp", 5, 0xDEADBEEF, b"\xde\xad\xbe\xef"),))
GOLDEN = (
    b'{"snapshot":"1000-7-abcdefgh","step":1000,"attempt":7,"worldSize":2,"files":[{"name":"__0_0.distcp","size":5,'
    b'"crc32c":3735928559,"blockCrc32c":"3q2+7w=="}],"versions":{},"blockBytes":4194304,"format":1}'
)


def read(data: bytes) -> Manifest:
    return decode(data, expected_digest=digest(data), subject=KEY)


def altered(*path: str | int, to: Any) -> bytes:
    """The good manifest with one value changed."""
    tree = json.loads(encode(GOOD))
    place = tree
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = to
    return json.dumps(tree).encode()


def test_the_bytes_of_a_manifest_never_change() -> None:
    assert encode(GOOD) == GOLDEN
    assert read(GOLDEN) == GOOD


@given(MANIFESTS)
def test_a_manifest_survives_the_way_through_the_store(manifest: Manifest) -> None:
    assert read(encode(manifest)) == manifest


def test_a_manifest_that_is_not_the_committed_one_is_evidence_against_the_snapshot() -> None:
    with pytest.raises(CorruptSnapshotError, match="its SHA-256 is") as caught:
        decode(encode(GOOD), expected_digest=digest(b"another"), subject=KEY)
    assert caught.value.evidence == "ManifestMismatch"


TWO_FILES = [{"name": "a", "size": 0, "crc32c": 0, "blockCrc32c": ""}] * 2
HOSTILE = {
    "no JSON": (b"garbage", "not a manifest"),
    "nothing": (b"", "not a manifest"),
    "nested without end": (b'{"versions": ' + b"[" * 200_000, "not a manifest"),
    "a negative size": (altered("files", 0, "size", to=-1), "size"),
    "a checksum of 33 bits": (altered("files", 0, "crc32c", to=2**32), "crc32c"),
    "attempt 0": (altered("attempt", to=0), "attempt"),
    "a field is missing": (b'{"snapshot": "1000-7-abcdefgh"}', "missing required field"),
    "a newer format": (altered("format", to=4), "it has format 4"),
    "no blocks": (altered("blockBytes", to=0), "its blocks have 0 bytes"),
    "blocks too large to hold": (altered("blockBytes", to=2**40), "its blocks have 1099511627776 bytes"),
    "negative blocks": (altered("blockBytes", to=-4096), "its blocks have -4096 bytes"),
    "a path upwards": (altered("files", 0, "name", to="../../other/.metadata"), "not the name of a file"),
    "a folder": (altered("files", 0, "name", to="a/b"), "not the name of a file"),
    "an absolute path": (altered("files", 0, "name", to="/etc/passwd"), "not the name of a file"),
    "a file in another run": (
        altered("files", 0, "in", to="../other/step-1/0001-abcdefgh"),
        "not the folder of a save",
    ),
    "a shared file in an old format": (altered("files", 0, "in", to="step-1/0001-abcdefgh"), "cannot be shared"),
    "itself": (altered("files", 0, "name", to="manifest.json"), "it lists itself"),
    "a file twice": (altered("files", to=TWO_FILES), "listed twice"),
    "too few block checksums": (altered("files", 0, "size", to=BLOCK_BYTES + 1), "1 block checksums"),
    "too many block checksums": (altered("files", 0, "size", to=0), "1 block checksums"),
    "half a block checksum": (altered("files", 0, "blockCrc32c", to="3q0="), "0 block checksums"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_this_version_cannot_use_is_refused_but_no_evidence(data: bytes, message: str) -> None:
    """It is what was committed, so the stored bytes are not to blame."""
    with pytest.raises(IncompatibleSnapshotError, match=message) as caught:
        read(data)
    assert caught.value.subject == KEY


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"files": (File("a/b", 0, 0, b""),)}, id="a folder"),
        pytest.param({"files": (File("a", 1, 0, b""),)}, id="no block checksum"),
        pytest.param({"world_size": 0}, id="no ranks"),
    ],
)
def test_an_unreadable_manifest_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the manifest cannot be read back"):
        encode(msgspec.structs.replace(GOOD, **changes))


def test_a_manifest_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100"):
        encode(GOOD)


def test_block_checksums_are_found_by_number() -> None:
    file = File("a", 2 * BLOCK_BYTES, 0, b"\0\0\0\1\0\0\0\2")
    assert [file.block_checksum(0), file.block_checksum(1)] == [1, 2]
    for block in (-1, 2):
        with pytest.raises(IndexError, match="a has 2 blocks"):
            file.block_checksum(block)


def test_a_manifest_knows_its_files_and_their_size() -> None:
    two = msgspec.structs.replace(GOOD, files=(*GOOD.files, File(".metadata", 7, 0, b"\0\0\0\0")))
    assert two.size == 12
    assert two.file(".metadata") == two.files[1]
    assert two.file("absent") is None


@pytest.mark.parametrize(
    ("gibibytes", "kibibytes"),
    [(0, 256), (1, 256), (64, 256), (65, 512), (128, 512), (256, 1024), (512, 2048), (513, 4096), (10_000, 4096)],
)
def test_blocks_grow_with_the_snapshot(gibibytes: int, kibibytes: int) -> None:
    assert block_bytes_for(gibibytes * 2**30) == kibibytes * 1024


@given(total=st.integers(0, 2**42))
def test_blocks_are_few_enough_for_a_small_manifest_and_divide_every_part_of_an_upload(total: int) -> None:
    block_bytes = block_bytes_for(total)
    assert (4 * 2**20) % block_bytes == 0
    assert total // block_bytes <= 262_144 or block_bytes == BLOCK_BYTES
