"""The CRDs are the schema users meet, core.api the types the operator reads: neither may know what the other lacks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from checkpoint_sidecar.core import api
from checkpoint_sidecar.core.location import ENDPOINT_PATTERN

CRDS = Path(__file__).parents[2] / "crds"
Schema = dict[str, Any]

PAIRS = {
    ("checkpoints", "spec"): api.CheckpointSpec,
    ("checkpoints", "status"): api.CheckpointStatus,
    ("checkpointsnapshots", "spec"): api.CheckpointSnapshotSpec,
    ("checkpointsnapshots", "status"): api.CheckpointSnapshotStatus,
}
SCALARS = {
    msgspec.inspect.StrType: "string",
    msgspec.inspect.IntType: "integer",
    msgspec.inspect.BoolType: "boolean",
}


def crd(plural: str) -> Schema:
    loaded: Schema = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    return loaded


def root(plural: str) -> Schema:
    schema: Schema = crd(plural)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def differences(schema: Schema, kind: msgspec.inspect.Type, path: str) -> Iterator[str]:
    """What the schema and the type say differently, in both directions."""
    if isinstance(kind, msgspec.inspect.Metadata):
        yield from differences(schema, kind.type, path)
    elif isinstance(kind, msgspec.inspect.UnionType):
        (inner,) = (one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType))
        yield from differences(schema, inner, path)
    elif isinstance(kind, msgspec.inspect.StructType):
        yield from _differences_of_struct(schema, kind, path)
    elif isinstance(kind, msgspec.inspect.VarTupleType):
        yield from _unequal(path, "type", schema.get("type"), "array")
        yield from differences(schema.get("items", {}), kind.item_type, f"{path}[]")
    elif isinstance(kind, msgspec.inspect.DictType):
        yield from _unequal(path, "type", schema.get("type"), "object")
        yield from differences(schema.get("additionalProperties", {}), kind.value_type, f"{path}{{}}")
    elif isinstance(kind, msgspec.inspect.LiteralType):
        yield from _unequal(path, "enum", set(schema.get("enum", ())), set(kind.values))
    else:
        yield from _unequal(path, "type", schema.get("type"), SCALARS[type(kind)])
        yield from _unequal(path, "enum", schema.get("enum"), None)


def _differences_of_struct(schema: Schema, kind: msgspec.inspect.StructType, path: str) -> Iterator[str]:
    properties: dict[str, Schema] = schema.get("properties", {})
    fields = {field.encode_name: field for field in kind.fields}
    yield from _unequal(path, "fields", set(properties), set(fields))
    yield from _unequal(
        path, "required", set(schema.get("required", ())), {name for name, field in fields.items() if field.required}
    )
    for name in properties.keys() & fields.keys():
        here = f"{path}.{name}"
        yield from _unequal(here, "default", properties[name].get("default"), _default(fields[name]))
        yield from differences(properties[name], fields[name].type, here)


def _default(field: msgspec.inspect.Field) -> Any:
    """As the schema spells it: a struct of defaults is ``{}``, "nothing" is no default at all."""
    if field.default is msgspec.NODEFAULT or field.default in (None, ()):
        return None
    return {} if isinstance(field.default, msgspec.Struct) else field.default


def _unequal(path: str, what: str, schema: object, kind: object) -> Iterator[str]:
    if schema != kind:
        yield f"{path}: {what}: {schema} in the CRD, {kind} in core.api"


def nodes(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def every_node() -> list[tuple[str, Schema]]:
    return list(
        itertools.chain.from_iterable(
            nodes(root(plural)["properties"][part], f"{plural}.{part}") for plural, part in PAIRS
        )
    )


@pytest.mark.parametrize(("plural", "part"), PAIRS, ids=[".".join(pair) for pair in PAIRS])
def test_schema_and_types_agree_in_both_directions(plural: str, part: str) -> None:
    kind = msgspec.inspect.type_info(PAIRS[plural, part])
    assert list(differences(root(plural)["properties"][part], kind, part)) == []


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"properties": {"name": {"type": "string"}, "more": {}}, "required": ["name"]}, "fields"),
        ({"properties": {}, "required": []}, "fields"),
        ({"properties": {"name": {"type": "string"}}}, "required"),
        ({"properties": {"name": {"type": "integer"}}, "required": ["name"]}, "type"),
        ({"properties": {"name": {"type": "string", "default": "x"}}, "required": ["name"]}, "default"),
        ({"properties": {"name": {"type": "string", "enum": ["x"]}}, "required": ["name"]}, "enum"),
    ],
    ids=["one field too many", "a missing field", "not required", "another type", "another default", "a stray enum"],
)
def test_the_comparison_notices(schema: Schema, complaint: str) -> None:
    assert any(complaint in line for line in differences(schema, msgspec.inspect.type_info(api.LocalReference), "ref"))


def test_an_endpoint_has_one_pattern() -> None:
    storage = root("checkpoints")["properties"]["spec"]["properties"]["storage"]["properties"]
    (rule,) = storage["endpoint"]["x-kubernetes-validations"]
    assert f"self.matches(r'^{ENDPOINT_PATTERN}$')" in rule["rule"]


def test_everything_is_bounded() -> None:
    bound = {"string": ("maxLength", "enum"), "array": ("maxItems",), "integer": ("minimum",)}
    unbounded = [
        path
        for path, schema in every_node()
        if schema["type"] in bound and not any(key in schema for key in bound[schema["type"]])
    ]
    maps = [path for path, s in every_node() if "additionalProperties" in s and "maxProperties" not in s]
    assert unbounded + maps == []


def test_numbers_a_user_writes_have_an_upper_bound() -> None:
    user = [(path, s) for path, s in every_node() if path.startswith("checkpoints.spec")]
    assert [path for path, s in user if s["type"] == "integer" and "maximum" not in s] == []


def test_every_field_is_described() -> None:
    assert [path for path, s in every_node() if not path.endswith("[]") and not s.get("description")] == []


def test_every_list_says_how_it_is_merged() -> None:
    lists = [(path, s) for path, s in every_node() if s["type"] == "array"]
    assert [path for path, s in lists if "x-kubernetes-list-type" not in s] == []


def test_lists_are_cut_where_the_schema_cuts_them() -> None:
    cut = {"skipped", "pods", "pendingPurge", "quarantined"}
    found = {path.rpartition(".")[2]: s["maxItems"] for path, s in every_node() if path.rpartition(".")[2] in cut}
    assert found == dict.fromkeys(cut, api.MAX_LISTED)


@pytest.mark.parametrize("plural", ["checkpoints", "checkpointsnapshots"])
def test_names_and_versions_are_those_of_the_types(plural: str) -> None:
    found = crd(plural)
    kinds = {api.CHECKPOINT_PLURAL: api.CHECKPOINT_KIND, api.SNAPSHOT_PLURAL: api.SNAPSHOT_KIND}
    assert found["metadata"]["name"] == f"{plural}.{api.GROUP}"
    assert found["spec"]["names"]["kind"] == kinds[plural]
    assert [version["name"] for version in found["spec"]["versions"]] == [api.VERSION]
