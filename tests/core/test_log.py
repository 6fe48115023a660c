"""The log's wire format: every entry ever written stays readable, and an unreadable one is never written."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core.errors import LogError
from checkpoint_sidecar.core.log import (
    KINDS,
    MAX_TEXT,
    AttemptFenced,
    AttemptStarted,
    Body,
    DispositionSet,
    EvictionNoticed,
    Owner,
    PodIdentity,
    PurgeStarted,
    QuarantineReleased,
    RestoreFinished,
    RestoreStarted,
    RollbackRequested,
    RunAdopted,
    RunClaimed,
    RunConfigured,
    SaveFailed,
    SaveRequested,
    SavesIdentified,
    SnapshotCommitted,
    SnapshotCommittedSharing,
    SnapshotPurged,
    SnapshotRead,
    SnapshotReinstated,
    SnapshotRetired,
    SnapshotVerified,
    StoredEntry,
    Unknown,
    WarmStartChosen,
    WarmStartFinished,
    decode,
    encode,
    new_entry_id,
)
from checkpoint_sidecar.core.policy import KeepBest, Policy, RestorePolicy, RetentionPolicy, SavePolicy
from checkpoint_sidecar.core.shared_files import SharedFiles
from core.strategies import ANY_BODY
from support.builders import BEGINNING, OWNER, POD

GOLDEN = Path(__file__).parent / "golden"
SNAPSHOT = "1000-7-abcdefgh"

EXAMPLES: dict[str, Body] = {
    type(body).__name__: body
    for body in (
        SnapshotRead(SNAPSHOT, "read-0123456789ab", 3600.0),
        RunClaimed(OWNER),
        RunAdopted(Owner("cluster-b", "training", "llama"), OWNER),
        SavesIdentified("0123abcd"),
        RunConfigured(
            "uid-1",
            3,
            Policy(
                SavePolicy(
                    every_steps=500,
                    every_seconds=900.0,
                    on_termination=False,
                    on_failure="Raise",
                    max_failures=7,
                    unchanged="Copy",
                    keyframe_every=7,
                ),
                "Replace",
                RetentionPolicy(
                    keep_last=3,
                    keep_every_steps=5000,
                    keep_every_seconds=86400.0,
                    keep_best=(KeepBest("loss", "Min", 2),),
                    max_age_seconds=2592000.0,
                    max_total_bytes=2 * 1024**4,
                    grace_seconds=3600.0,
                    dry_run=True,
                ),
                RestorePolicy("None", "Sizes", 4, 5, "Fail"),
            ),
        ),
        RollbackRequested("rollback-1", SNAPSHOT),
        WarmStartChosen("s3://training/llama@best", "s3://training/llama", SNAPSHOT, 1000, "model"),
        WarmStartFinished(
            8,
            "s3://training/llama",
            SNAPSHOT,
            1000,
            "model",
            False,
            "SizeMismatch",
            "expected 10 bytes, found 9",
            1.5,
            4096,
            ("optimizer",),
            ("ema",),
        ),
        AttemptStarted(8, 2, "rollback-1", SNAPSHOT, "", (POD,)),
        RestoreStarted(8, SNAPSHOT),
        RestoreFinished(
            8,
            SNAPSHOT,
            False,
            "SizeMismatch",
            "expected 10 bytes, found 9",
            "Checksums",
            1.5,
            4096,
            missing=("ema",),
            unused=("model.head.weight",),
        ),
        SnapshotCommitted(
            SNAPSHOT,
            1000,
            7,
            "step-1000/0007-abcdefgh",
            "ab" * 32,
            123456789,
            5,
            2,
            "500-7-hgfedcba",
            "1000-6-22222222",
            "rollback-1",
            "save-1",
            "Eviction",
            {"loss": "0.1"},
            12.5,
            0.25,
            100_000_000,
        ),
        SnapshotCommittedSharing(
            SNAPSHOT,
            1000,
            7,
            "step-1000/0007-abcdefgh",
            "ab" * 32,
            123456789,
            5,
            2,
            "500-7-hgfedcba",
            shares=(
                SharedFiles("400-7-hgfedcba", "0-1:0-3", ((10_000_000, 7), (6_000_000, 1))),
                SharedFiles("500-7-hgfedcba", "1:5", ((5_000_000, 1),)),
            ),
        ),
        SnapshotVerified(SNAPSHOT, "Checksums", False, "MissingObject", "__0_0.distcp does not exist"),
        SaveRequested("save-1", 8),
        SaveFailed(8, 1500, 3, "upload a key: the disk is full"),
        EvictionNoticed(8, POD, "EvictionByEvictionAPI"),
        AttemptFenced(8),
        DispositionSet(SNAPSHOT, "Hold"),
        QuarantineReleased(SNAPSHOT, "release-1"),
        SnapshotRetired(SNAPSHOT, ("Superseded",)),
        SnapshotReinstated(SNAPSHOT, 8),
        PurgeStarted(SNAPSHOT),
        SnapshotPurged(SNAPSHOT, 123456789),
    )
}


def write(body: Body, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "number": 7,
        "entry_id": "0123456789abcdef0123456789abcdef",
        "previous": "cd" * 32,
        "time": BEGINNING,
        "writer": "library 0.1.0",
    }
    return encode(**(fields | changes), body=body)


def read(data: bytes, number: int = 7) -> StoredEntry:
    return decode(data, number=number, stored_at=BEGINNING)


def altered(**fields: Any) -> bytes:
    """A valid entry with some fields of its envelope changed."""
    return json.dumps(json.loads(write(RestoreStarted(8, SNAPSHOT))) | fields).encode()


def test_every_kind_has_a_golden_file() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(EXAMPLES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_an_entry_never_change(kind: str) -> None:
    """Logs are never rewritten: what 0.1 wrote must mean the same to every later 1.x. A failure here is a new major."""
    golden = (GOLDEN / f"{kind}.json").read_bytes().rstrip(b"\n")
    assert write(EXAMPLES[kind]) == golden
    assert read(golden).body == EXAMPLES[kind]


def test_a_policy_written_before_saves_could_fail_means_the_defaults() -> None:
    data = (GOLDEN / "RunConfigured.json").read_bytes().rstrip(b"\n")
    new = b',"onFailure":"Raise","maxFailures":7,"unchanged":"Copy","keyframeEvery":7'
    assert new in data
    body = read(data.replace(new, b"")).body
    assert isinstance(body, RunConfigured)
    save = body.policy.save
    assert (save.on_failure, save.max_failures, save.unchanged, save.keyframe_every) == ("Continue", 5, "Send", 20)


def test_a_purge_that_keeps_nothing_and_a_check_without_a_shared_file_are_written_as_ever() -> None:
    assert b"keep" not in write(PurgeStarted(SNAPSHOT))
    assert b'"keep":"0-3:0"' in write(PurgeStarted(SNAPSHOT, "0-3:0"))
    assert b"damagedFile" not in write(SnapshotVerified(SNAPSHOT, "Sizes", passed=True))


@given(body=ANY_BODY, number=st.integers(1, 10**15), critical_time=st.datetimes(timezones=st.just(dt.UTC)))
def test_an_entry_survives_the_way_through_the_store(body: Body, number: int, critical_time: dt.datetime) -> None:
    data = write(body, number=number, time=critical_time)
    entry = read(data, number)
    assert entry.body == body
    assert (entry.number, entry.id, entry.previous) == (number, "0123456789abcdef0123456789abcdef", "cd" * 32)
    assert entry.digest == hashlib.sha256(data).hexdigest()
    assert entry.stored_at == BEGINNING
    assert entry.critical == isinstance(body, SnapshotCommittedSharing)


def test_the_clock_of_the_writer_is_kept_for_display_in_utc() -> None:
    paris = dt.timezone(dt.timedelta(hours=1))
    entry = read(write(PurgeStarted(SNAPSHOT), time=dt.datetime(2026, 1, 1, 1, tzinfo=paris)))
    assert entry.time == "2026-01-01T00:00:00.000+00:00"


@given(data=st.binary() | st.text().map(str.encode) | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_bytes_that_are_no_entry_are_refused_and_never_crash_the_reader(data: bytes | str) -> None:
    with pytest.raises(LogError, match="read entry 7 of the run log"):
        read(data.encode() if isinstance(data, str) else data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(altered(number=8), "it says that it is entry 8", id="another number"),
        pytest.param(altered(kind="RestoreFinished"), "not a valid RestoreFinished", id="a body of another kind"),
        pytest.param(altered(body={"attempt": 0, "snapshot": "x"}), "not a valid RestoreStarted", id="attempt 0"),
        pytest.param(altered(body={"attempt": 1}), "missing required field `snapshot`", id="a field is missing"),
        pytest.param(altered(previous="CD" * 32), "not a log entry", id="a digest that is none"),
        pytest.param(altered(previous="cd" * 32 + "\n"), "not a log entry", id="a digest with a line break"),
        pytest.param(altered(format="one"), "not a log entry", id="a format that is none"),
        pytest.param(altered(format="2.0"), "it has format 2.0, but this version reads up to 1.x", id="a newer major"),
        pytest.param(b'{"format": "2.0", "nummer": 7}', "Upgrade checkpoint-operator", id="a newer major throughout"),
        pytest.param(write(PurgeStarted(SNAPSHOT))[:-1], "not a log entry", id="cut off"),
        pytest.param(b'{"format": "1.0", "body": ' + b"[" * 200_000, "not a log entry", id="nested without end"),
    ],
)
def test_a_damaged_or_foreign_entry_is_refused_with_its_cause(data: bytes, message: str) -> None:
    with pytest.raises(LogError, match=message):
        read(data)


def test_a_newer_minor_with_more_fields_is_read() -> None:
    data = altered(format="1.9", added=True, body={"attempt": 8, "snapshot": SNAPSHOT, "added": {}})
    assert read(data).body == RestoreStarted(8, SNAPSHOT)


@pytest.mark.parametrize("critical", [False, True])
def test_an_unknown_kind_is_read_by_name(critical: bool) -> None:
    entry = read(altered(kind="SnapshotMoved", body={"to": ["somewhere"]}, critical=critical))
    assert entry.body == Unknown("SnapshotMoved")
    assert entry.critical is critical


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(RestoreStarted(0, SNAPSHOT), "attempt", id="attempt 0"),
        pytest.param(RestoreFinished(1, SNAPSHOT, False, message="x" * (MAX_TEXT + 1)), "message", id="a long message"),
        pytest.param(RestoreFinished(1, SNAPSHOT, True, seconds=float("nan")), "seconds", id="no number of seconds"),
        pytest.param(SnapshotRetired(SNAPSHOT, ("reason",) * 9), "reasons", id="too many reasons"),
        pytest.param(RunClaimed(Owner("a/b", "c", "d")), "owner.cluster", id="an owner that could be two"),
        pytest.param(RunClaimed(Owner("a", "c", "d\n")), "owner.name", id="an owner with a line break"),
        pytest.param(AttemptStarted(1, 1, pods=(PodIdentity("p", "u"),) * 17), "pods", id="too many pods"),
        pytest.param(DispositionSet(SNAPSHOT, "Keep"), "disposition", id="a word that means nothing"),  # type: ignore[arg-type]
    ],
)
def test_an_unreadable_entry_is_not_written(body: Body, message: str) -> None:
    """An entry cannot be taken back: one that readers refuse would end the run."""
    with pytest.raises(LogError, match=rf"write a log entry {type(body).__name__}: .*{message}"):
        write(body)


def test_an_entry_has_a_largest_size() -> None:
    huge = SnapshotRetired("x" * 300_000, ())
    with pytest.raises(LogError, match="more than 262144"):
        write(huge)


def test_entry_ids_differ() -> None:
    assert len({new_entry_id() for _ in range(100)}) == 100


def test_an_owner_is_the_inverse_of_its_text() -> None:
    assert Owner.parse(str(OWNER)) == OWNER


@pytest.mark.parametrize("text", ["", "a/b", "a/b/c/d", "a//c", "/b/c"])
def test_a_text_that_is_no_owner_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not <cluster>/<namespace>/<name>"):
        Owner.parse(text)
