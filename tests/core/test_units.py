"""Sizes are printed in one way: a binary unit, one digit."""

from __future__ import annotations

import pytest
from kubernetes.utils.quantity import parse_quantity

from checkpoint_sidecar.core.units import quantity, size


@pytest.mark.parametrize(
    ("count", "in_a_sentence", "in_a_column"),
    [
        (0, "0 B", "0"),
        (1023, "1023 B", "1023"),
        (1024, "1.0 KiB", "1.0Ki"),
        (2_013_935, "1.9 MiB", "1.9Mi"),
        (1024**2 - 1, "1.0 MiB", "1.0Mi"),
        (3 << 40, "3.0 TiB", "3.0Ti"),
        (2**63 - 1, "8.0 EiB", "8.0Ei"),
    ],
)
def test_a_size_has_a_unit_and_one_digit(count: int, in_a_sentence: str, in_a_column: str) -> None:
    assert (size(count), quantity(count)) == (in_a_sentence, in_a_column)
    assert float(parse_quantity(in_a_column)) == pytest.approx(count, rel=0.05, abs=0.5)
