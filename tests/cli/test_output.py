"""Tables fit the terminal, are not cut in a pipe, and never pass a control character on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_cli import output, words
from checkpoint_cli.output import Column, table

COLUMNS: tuple[Column[tuple[str, str, str]], ...] = (
    Column("NAME", lambda row: row[0]),
    Column("AGE", lambda row: row[1], right=True, spare=1),
    Column("NOTE", lambda row: row[2], spare=2),
)
CELLS = st.text(max_size=60)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5), st.integers(20, 200))
def test_no_line_is_wider_than_the_terminal(rows: list[tuple[str, str, str]], limit: int) -> None:
    lines = table(COLUMNS, rows, limit)
    assert len(lines) == len(rows) + 1
    assert all(len(line) <= limit and line.isprintable() for line in lines)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5))
def test_nothing_is_cut_in_a_pipe(rows: list[tuple[str, str, str]]) -> None:
    from checkpoint_cli.exits import one_line

    for row, line in zip(rows, table(COLUMNS, rows, None)[1:], strict=True):
        assert all(one_line(cell) in line for cell in row)


def test_the_column_that_can_be_missed_most_goes_first() -> None:
    rows = [("a" * 10, "5m", "n" * 30)]
    assert table(COLUMNS, rows, 80)[0].split() == ["NAME", "AGE", "NOTE"]
    assert table(COLUMNS, rows, 30)[0].split() == ["NAME", "AGE"]
    assert table(COLUMNS, rows, 12)[0].split() == ["NAME"]
    assert table(COLUMNS, rows, 8)[1] == "aaaaaaa…"


def test_colors_need_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.paint("x", "red") == "x"
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    assert output.paint("x", "red") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("x", "red") == "x"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.9, "59s"), (300, "5m"), (93600, "1d2h"), (3605, "1h")])
def test_a_duration_shows_its_two_largest_units(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@given(st.integers(0, 10**7))
def test_a_duration_of_two_units_reads_back(seconds: int) -> None:
    text = words.duration(seconds)
    assert words.duration(words.parse_duration(text)) == text


@pytest.mark.parametrize("text", ["", "5x", "m", "1h5", "-3"])
def test_a_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        words.parse_duration(text)
