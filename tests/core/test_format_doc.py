"""docs/format.md and docs/log-schema.json say what the code does, and all of it."""

from __future__ import annotations

import gzip
import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from checkpoint_sidecar.core import compaction, heartbeat, layout, manifest, overwrite
from checkpoint_sidecar.core.log import KINDS, MAX_ENTRY_BYTES, MAX_TEXT, Envelope, Owner, PodIdentity
from checkpoint_sidecar.core.log_format import FORMAT
from checkpoint_sidecar.core.policy import KeepBest, Policy, RestorePolicy, RetentionPolicy, SavePolicy
from support.longlogs import long_log

DOCS = Path(__file__).resolve().parents[2] / "docs"
FORMAT_DOC = (DOCS / "format.md").read_text()
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


def field_names(struct: type) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(struct)}


def names_in(text: str) -> set[str]:
    """What the text sets in backticks, and the keys in its JSON examples."""
    examples = "".join(re.findall(r"```json.*?```|`\{.*?\}`", text, flags=re.DOTALL))
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return set(re.findall(r"`([^`]+)`", prose)) | set(re.findall(r'"(\w+)":', examples))


def fields_in_row(kind: str) -> str:
    row: str
    (row,) = re.findall(rf"^\| `{kind}` \|.*$", FORMAT_DOC, flags=re.MULTILINE)
    return row.split("|")[3]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_row_that_names_its_fields_and_no_others(kind: str) -> None:
    assert set(re.findall(r"`(\w+)`", fields_in_row(kind))) == field_names(KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_an_optional_field_is_followed_by_its_default_in_brackets_and_a_required_one_by_none(kind: str) -> None:
    said = dict(re.findall(r"`(\w+)` \(([^),]*)[^)]*\)", fields_in_row(kind).replace("(at most 8)", "")))
    optional = {
        field.encode_name: default_of(field)
        for field in msgspec.structs.fields(KINDS[kind])
        if not field.required and field.default is not msgspec.UNSET
    }
    assert {name: json.loads(value) for name, value in said.items()} == optional


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return json.loads(msgspec.json.encode(default))


@pytest.mark.parametrize(
    "struct",
    [
        Envelope,
        Owner,
        PodIdentity,
        Policy,
        SavePolicy,
        RetentionPolicy,
        KeepBest,
        RestorePolicy,
        manifest.Manifest,
        manifest.File,
        heartbeat.Heartbeat,
        compaction._Header,
    ],
)
def test_every_field_of_every_object_is_named(struct: type) -> None:
    assert field_names(struct) <= names_in(FORMAT_DOC)


def test_every_reason_for_a_rejected_commit_is_in_the_table_in_the_order_of_the_checks() -> None:
    reasons = re.findall(r'"([A-Z][A-Za-z]+)"', inspect.getsource(overwrite.rejection))
    told = re.findall(
        r"^\| `([A-Z][A-Za-z]+)` \| [^|]+ \|$", FORMAT_DOC.split("**Rejected commits.**")[1], re.MULTILINE
    )
    assert told == [reason for reason in reasons if reason != "Replace"]


def test_the_limits_are_those_of_the_code() -> None:
    said = {
        "a log entry": f"{MAX_ENTRY_BYTES // 1024} KiB",
        "a compaction, before compression": f"{compaction.MAX_COMPACTION_BYTES // 1024**2} MiB",
        "the manifest, and one block": f"{manifest.MAX_MANIFEST_BYTES // 1024**2} MiB",
        "`_progress.json`": f"{heartbeat.MAX_PROGRESS_BYTES // 1024} KiB",
        "`message`, `reason`, one of `reasons`": f"{MAX_TEXT:,} characters",
    }
    for what, limit in said.items():
        assert re.search(rf"^\| {re.escape(what)} \| {re.escape(limit)}", FORMAT_DOC, re.MULTILINE), what
    assert manifest.MAX_BLOCK_BYTES == manifest.MAX_MANIFEST_BYTES
    assert f"The format is `{FORMAT}`" in FORMAT_DOC
    assert all(f"{span:,}" in FORMAT_DOC for span in compaction.SPANS)


def test_every_top_level_folder_is_listed() -> None:
    folders = {
        value for name, value in vars(layout).items() if name.endswith(("_FOLDER", "_KEY")) and isinstance(value, str)
    }
    assert {folder for folder in folders if folder not in FORMAT_DOC} == set()


def test_the_manifest_in_the_text_is_one() -> None:
    (example,) = re.findall(r"```json\n(\{\"snapshot\".*?)\n```", FORMAT_DOC, flags=re.DOTALL)
    read = manifest.decode(example.encode(), expected_digest=manifest.digest(example.encode()), subject="the example")
    assert read.file("__0_0.distcp") is not None


def test_a_compaction_can_be_read_with_nothing_but_what_the_text_says() -> None:
    entries = list(long_log(200))
    packed = compaction.encode(entries)
    assert packed is not None

    line, _, rest = gzip.decompress(packed).partition(b"\n")
    index = json.loads(line)
    read = []
    for size, microseconds in zip(index["sizes"], index["storedAt"], strict=True):
        read.append((rest[:size], microseconds / 1e6))
        rest = rest[size:]

    assert rest == b""
    assert read == [(entry.data, entry.stored_at.timestamp()) for entry in entries]


# The JSON schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((DOCS / "log-schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_is_what_the_code_makes_of_it() -> None:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert json.loads((DOCS / "log-schema.json").read_text()) == generate.log_schema(), "run docs/generate.py"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_entries_of_every_kind_are_valid(path: Path, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(json.loads(path.read_text()))


def changed(**fields: Any) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "RestoreStarted.json").read_text())
    return entry | fields


@pytest.mark.parametrize(
    ("entry", "valid"),
    [
        pytest.param(changed(kind="SnapshotMoved", body={"to": 1}), True, id="an unknown kind"),
        pytest.param(changed(format="1.7", added=True), True, id="a later minor with more fields"),
        pytest.param(changed(body={"attempt": 8, "snapshot": "x", "added": 1}), True, id="a body with more fields"),
        pytest.param(changed(format="2.0"), False, id="a later major"),
        pytest.param(changed(number=0), False, id="number 0"),
        pytest.param(changed(previous="CD" * 32), False, id="a digest that is none"),
        pytest.param(changed(body={"attempt": 8}), False, id="a field is missing"),
        pytest.param(changed(body={"attempt": 0, "snapshot": "x"}), False, id="attempt 0"),
    ],
)
def test_the_schema_draws_the_line_where_readers_do(
    entry: dict[str, Any], valid: bool, validator: jsonschema.Draft202012Validator
) -> None:
    assert validator.is_valid(entry) is valid
