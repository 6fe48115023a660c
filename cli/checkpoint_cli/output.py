"""Prints records: a table for people, JSON and YAML for programs, names for shell loops.

A table on a terminal fits its width: columns that can be missed go first, then long cells are cut. Into a pipe it is
neither cut nor colored.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from checkpoint_cli.exits import one_line

if TYPE_CHECKING:
    from checkpoint_cli.records import CommandRecord

Row = TypeVar("Row")

_GAP = "   "
_MIN_CELL = 6
_LINES_AT_ONCE = 256
"""Few enough that a reader that has left is noticed: the rest of a single large write would be lost silently."""
_COLORS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
_BY_WORD = {
    "Broken": "red",
    "Degraded": "yellow",
    "Healthy": "green",
    "Purging": "red",
    "Rejected": "red",
    "Retired": "yellow",
    "ok": "green",
    "problem": "red",
    "quarantined": "red",
    "unknown": "yellow",
    "warning": "yellow",
}


class OutputFormat(StrEnum):
    """Values of ``--output``."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table.

    Attributes:
        cell: The text of a row.
        right: Whether numbers align at their ends.
        spare: Columns with a higher number are left out first on a narrow terminal; 0 stays.
        wide: Whether it appears with ``-o wide`` only.
    """

    title: str
    cell: Callable[[Row], str]
    right: bool = False
    spare: int = 0
    wide: bool = False


def is_terminal() -> bool:
    """Return whether the output is read on a terminal."""
    return sys.stdout.isatty()


def colored() -> bool:
    """Return whether colors are welcome: on a terminal, unless NO_COLOR is set."""
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width() -> int | None:
    """Return the width of the terminal, or None if the output is not a terminal."""
    return max(shutil.get_terminal_size().columns, 20) if is_terminal() else None


def paint(text: str, color: str) -> str:
    """Color a text, if colors are welcome."""
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m" if colored() else text


def write(text: str = "") -> None:
    """Print one line."""
    sys.stdout.write(f"{text}\n")


def write_record(record: CommandRecord, output: OutputFormat) -> None:
    """Print one record as JSON or YAML."""
    import msgspec

    if output is OutputFormat.YAML:
        import yaml

        write(yaml.safe_dump(msgspec.to_builtins(record), sort_keys=False, allow_unicode=True).rstrip())
    else:
        write(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())


def write_names(names: Iterable[str]) -> None:
    """Print one name per line."""
    for name in names:
        write(name)


def write_table(
    columns: Sequence[Column[Row]], rows: Sequence[Row], *, output: OutputFormat, empty: str = "Nothing found."
) -> None:
    """Print a table, or for no rows a sentence on standard error, so that a pipe gets nothing."""
    if not rows:
        sys.stderr.write(f"{empty}\n")
        return
    chosen = [column for column in columns if not column.wide or output is OutputFormat.WIDE]
    lines = table(chosen, rows, width())
    for start in range(0, len(lines), _LINES_AT_ONCE):
        write("\n".join(lines[start : start + _LINES_AT_ONCE]))


def table(columns: Sequence[Column[Row]], rows: Sequence[Row], limit: int | None) -> list[str]:
    """Return the lines of a table that is at most ``limit`` characters wide, if there is a limit."""
    cells = [
        [column.title for column in columns],
        *([one_line(column.cell(row)) for column in columns] for row in rows),
    ]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    shown = _shown(columns, widths, limit)
    widths = _cut([widths[at] for at in shown], limit)
    return [
        _GAP.join(
            _cell(line[at], size, right=columns[at].right, last=at == shown[-1])
            for at, size in zip(shown, widths, strict=True)
        ).rstrip()
        for line in cells
    ]


def _shown(columns: Sequence[Column[Any]], widths: Sequence[int], limit: int | None) -> list[int]:
    shown = list(range(len(columns)))
    spare = sorted((at for at in shown if columns[at].spare), key=lambda at: columns[at].spare)
    while limit is not None and spare and _total([widths[at] for at in shown]) > limit:
        shown.remove(spare.pop())
    return shown


def _cut(widths: list[int], limit: int | None) -> list[int]:
    widths = list(widths)
    while limit is not None and _total(widths) > limit and max(widths) > _MIN_CELL:
        widths[widths.index(max(widths))] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _cell(text: str, size: int, *, right: bool, last: bool) -> str:
    if len(text) > size:
        text = f"{text[: size - 1]}…"
    padding = "" if last and not right else " " * (size - len(text))
    color = _BY_WORD.get(text)
    shown = paint(text, color) if color else text
    return f"{padding}{shown}" if right else f"{shown}{padding}"


def wrapped(text: str, indent: int) -> str:
    """Return a text for a terminal: broken between words, further lines indented by ``indent`` columns."""
    text = one_line(text)
    limit = width()
    if limit is None or indent + len(text) <= limit:
        return text
    import textwrap

    return f"\n{' ' * indent}".join(textwrap.wrap(text, max(limit - indent, 20)))
