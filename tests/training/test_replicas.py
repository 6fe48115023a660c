"""What several ranks hold under one name: compared before it is saved, kept or refused."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from checkpoint_sidecar.training.state import digests
from checkpoint_sidecar.training.state.values import Packer
from training.ranks import run_ranks

SCRIPT = Path(__file__).with_name("replica_ranks.py")
CHECKS = re.findall(r"^@check\ndef (\w+)", SCRIPT.read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Error text by check, for each rank."""
    return run_ranks(SCRIPT, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.distributed
@pytest.mark.parametrize("check", CHECKS)
def test_two_ranks(check: str, results: list[dict[str, str]]) -> None:
    for rank, result in enumerate(results):
        assert not result[check], f"rank {rank}: {result[check]}"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(_VALUES)
@example(b"CKPTVAL1 and nothing that was packed")
def test_a_copy_has_the_same_digest(value: Any) -> None:
    assert digests.of_object(pickle.loads(pickle.dumps(value))) == digests.of_object(value) is not None


@given(_VALUES, _VALUES)
def test_values_of_other_pickles_have_other_digests(one: Any, other: Any) -> None:
    if one != other:
        assert digests.of_object(one) != digests.of_object(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (True, 1),
        (1, 1.0),
        ([1], (1,)),
        (1 << 500, (1 << 500) + 1),
        ("\ud800", "\ud801"),
        (np.float32(1), np.float64(1)),
        (np.arange(4), np.arange(4).reshape(2, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
        (torch.eye(2).to_sparse_csr(), (2 * torch.eye(2)).to_sparse_csr()),
        (torch.zeros(2, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.complex64).conj()),
        (torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(2))),
        ({"a": {1, 2}}, {"a": {1, 3}}),
        (re.compile("a"), re.compile("b")),
    ],
)
def test_other_values_have_other_digests(one: Any, other: Any) -> None:
    assert digests.of_object(one) is not None
    assert digests.of_object(pickle.loads(pickle.dumps(one))) == digests.of_object(one) != digests.of_object(other)


def test_packed_values_are_compared_as_values() -> None:
    def packed(value: Any) -> bytes:
        return Packer(lambda *_: None).pack(value)

    one, other = {"a": 1, "b": {"x"}}, {"b": {"x"}, "a": 1}
    assert packed(one) != packed(other)
    assert digests.of_object(packed(one)) == digests.of_object(packed(other))
    assert digests.of_object(packed(one)) != digests.of_object(packed({"a": 2, "b": {"x"}}))
    large = packed(list(range(100_000)))
    assert digests.of_object(large) == digests.of_object(bytes(large)) is not None


def test_what_cannot_be_taken_apart_has_no_digest() -> None:
    assert digests.of_object(lambda: 1) is not None  # a function goes by its name
    assert digests.of_object(iter([open])) is not None
    nothing: tuple[int, ...] = ()
    assert digests.of_object(x for x in nothing) is None
    assert digests.of_object(list(range(100_000))) is None
    assert digests.of_tensor(torch.empty(2, device="meta")) is None
    circle: list[Any] = []
    circle.append(circle)
    assert digests.of_object(circle) is not None


@pytest.mark.parametrize("seed", range(4))
def test_every_large_part_of_a_large_tensor_is_looked_at(seed: int) -> None:
    tensor = torch.zeros(4_000_001, dtype=torch.uint8)
    digest = digests.of_tensor(tensor, seed)
    for start in range(0, 3_500_000, 100_000):
        changed = tensor.clone()
        changed[start : start + 500_001] = 1
        assert digests.of_tensor(changed, seed) != digest
