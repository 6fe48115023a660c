"""Which tensors are exported, and under which names."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.engine.requests import ByteRange
from checkpoint_sidecar.exports.choosing import Naming, choose, tied_names
from checkpoint_sidecar.exports.contents import ArchivePlace, SnapshotContents, StoredTensor

PLACE = ArchivePlace("__0_0.distcp", ByteRange(0, 1))


def contents(*names: str, values: tuple[str, ...] = ()) -> SnapshotContents:
    tensors = {name: StoredTensor(name, "float32", (2,), ()) for name in names}
    return SnapshotContents(tensors, dict.fromkeys(values, PLACE))


TRAINED = contents(
    "model.layers.0.weight",
    "model.layers.1.weight",
    "optimizer.state.layers.0.weight.exp_avg",
    values=("model.__form__.1f", "optimizer.__form__.2f", "model._extra_state", "step"),
)


@pytest.mark.parametrize(
    ("stored", "naming", "names"),
    [
        (TRAINED, {}, ["layers.0.weight", "layers.1.weight"]),
        (TRAINED, {"part": "optimizer"}, ["state.layers.0.weight.exp_avg"]),
        (TRAINED, {"part": "model.layers.1"}, ["weight"]),
        (TRAINED, {"part": "."}, [*TRAINED.tensors]),
        (TRAINED, {"strip": ("head.", "layers.")}, ["0.weight", "1.weight"]),
        (TRAINED, {"rename": ((r"layers\.(\d+)", r"h\1"), ("weight$", "w"))}, ["h0.w", "h1.w"]),
        (contents("net.w", values=("net.__form__.1f",)), {}, ["w"]),
        (contents("embed.w", "model.w"), {}, ["embed.w", "model.w"]),
        (contents("model.w", "optim.w"), {}, ["w"]),
    ],
)
def test_names_follow_from_the_part_and_the_rules(
    stored: SnapshotContents, naming: dict[str, Any], names: list[str]
) -> None:
    chosen = choose(stored, Naming(**naming), [], subject="run")
    assert [each.name for each in chosen.tensors] == names


@pytest.mark.parametrize(
    ("naming", "says"),
    [
        ({"part": "ema"}, r"it has no tensor below ema\. It has model, optimizer"),
        ({"rename": ((r"\d", ""),)}, r"two tensors get the name layers\.\.weight"),
        ({"rename": (("(", ""),)}, "no regular expression"),
        ({"rename": (("a", r"\1"),)}, "no regular expression"),
        ({"part": "model.layers.0", "strip": ("weight",)}, "whole name"),
        ({"dtype": "int8"}, r"not a dtype to cast to\. Use one of float16, bfloat16, float32, float64"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(naming: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        choose(TRAINED, Naming(**naming), [], subject="run")


def test_without_a_model_among_several_modules_the_part_must_be_named() -> None:
    stored = contents("a.w", "b.w", values=("a.__form__.1f", "b.__form__.2f"))
    with pytest.raises(ConfigurationError, match=r"no part of it is named model\. Name one as the part: a, b"):
        choose(stored, Naming(), [], subject="run")


def test_values_that_are_no_tensors_are_named_and_descriptions_are_not() -> None:
    assert choose(TRAINED, Naming(), [], subject="run").skipped == ("model._extra_state",)


def test_a_tied_weight_keeps_its_first_name() -> None:
    tied = [("model.layers.0.weight", "model.layers.1.weight")]
    (tensor,) = choose(TRAINED, Naming(strip=("layers.",)), tied, subject="run").tensors
    assert (tensor.name, tensor.ties) == ("0.weight", ("1.weight",))


def packed(node: Any) -> bytes:
    return b"CKPTVAL1" + msgspec.msgpack.encode(node)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (packed(["dict", ["x", "ties"], [1, ["list", [["tuple", ["a", "b"]]]]]]), [("model.a", "model.b")]),
        (packed(["dict", ["x"], [1]]), []),
        (packed(["list", []]), []),
        (packed(7), []),
        (packed(["dict", ["ties"], [["list", [1]]]]), []),
        (b"CKPTVAL1\xc1", []),
        (b"", []),
    ],
)
def test_ties_are_read_from_the_description_of_a_module(data: bytes, found: list[tuple[str, ...]]) -> None:
    assert tied_names("model.__form__.1f", data) == found
