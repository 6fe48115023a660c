"""Numbers and names that travel between ranks, in few bytes and few Python objects."""

from __future__ import annotations

import pickle
import re
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from checkpoint_sidecar.training.dcp.inventory import Integers, integers, padded

TABLES = 64
"""Number of tables kept: ranks of one pipeline stage have equal ones."""
_NUMBER = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]{0,17})(?![0-9])")
"""A number that is the same number when it is read and written, and that 64 bits hold."""
_MOST_NUMBERS = 32
"""Of one text; later ones stay part of the text. A row has at most 255 columns, and each text takes the longest row."""


def pack_rows(rows: Integers) -> bytes:
    """Return the bytes of rows of integers: very few where columns stay equal or grow in equal steps."""
    steps = np.diff(rows, axis=0, prepend=0) if len(rows) else rows
    return bytes((rows.shape[1],)) + zlib.compress(np.ascontiguousarray(steps.T).astype("<i8").tobytes(), 1)


def unpack_rows(data: bytes, *, most: int = 0) -> Integers:
    """Return what ``pack_rows`` has packed.

    Args:
        most: Refuse more bytes than these; 0 for any number.

    Raises:
        ValueError, IndexError, zlib.error: It was not packed, or has more bytes.
    """
    width, steps = data[0], inflate(data[1:], most=most)
    if not width:
        return np.zeros((0, 0), np.int64)
    return np.cumsum(np.frombuffer(steps, "<i8").reshape(width, -1), axis=1).T


def unpack_columns(data: bytes, rows: int, *, most: int) -> Iterator[Integers]:
    """Yield the columns that ``pack_rows`` has packed, one at a time, each in as few bytes as its numbers allow.

    The sum of two numbers still fits into the type of their columns.

    Args:
        rows: Number of rows.
        most: Refuse more bytes than these.

    Raises:
        ValueError, IndexError, zlib.error: It was not packed, or has another number of rows, or more bytes.
    """
    width, rest, size = data[0], data[1:], 8 * rows
    if not 0 <= width * size <= most:
        raise ValueError("it is larger than expected")
    inflating = zlib.decompressobj()
    for _ in range(width):
        steps = b""
        if size:  # zlib takes no limit for none
            steps, rest = inflating.decompress(rest, size), inflating.unconsumed_tail
        if len(steps) != size:
            raise ValueError("it ends early")
        yield _narrow(np.cumsum(np.frombuffer(steps, "<i8")))
    if inflating.decompress(rest, 1) or not inflating.eof:
        raise ValueError("it does not end with its last column")


def _narrow(column: Integers) -> Integers:
    largest = max(int(column.max(initial=0)), -int(column.min(initial=0)))
    kind = next((kind for kind in (np.int16, np.int32) if 2 * largest <= np.iinfo(kind).max), np.int64)
    return column.astype(kind)


def inflate(data: bytes, *, most: int = 0) -> bytes:
    """Return compressed bytes; see ``unpack_rows``."""
    inflating = zlib.decompressobj()
    found = inflating.decompress(data, most)
    if not inflating.eof:
        raise ValueError("it ends early, or is larger than expected")
    return found


def pack_texts(texts: Sequence[str]) -> bytes:
    """Return the bytes of texts: few where they differ in numbers only, as the names of a model's layers do."""
    around = [tuple(_NUMBER.split(text, _MOST_NUMBERS)) for text in texts]
    forms = {form: number for number, form in enumerate(dict.fromkeys(around))}
    numbers = padded([[int(each) for each in _NUMBER.findall(text)[:_MOST_NUMBERS]] for text in texts])
    rows = np.column_stack([integers(forms[form] for form in around), numbers])
    return pack_table((tuple(forms), pack_rows(rows)))


@lru_cache(TABLES)
def unpack_texts(data: bytes) -> tuple[str, ...]:
    """Return what ``pack_texts`` has packed: one object for all ranks that sent the same."""
    forms, packed = unpack_table(data)
    texts = []
    for form, *numbers in unpack_rows(packed).tolist():
        first, *others = forms[form]
        texts.append(first + "".join(f"{number}{after}" for number, after in zip(numbers, others, strict=False)))
    return tuple(texts)


def pack_values(values: Iterable[Any], key: Callable[[Any], Hashable] = pickle.dumps) -> bytes:
    """Return the bytes of values: few where there are few distinct ones.

    Args:
        key: Returns the same for equal values only. A cheaper one than pickling each value saves most of the time.
    """
    distinct: dict[Hashable, tuple[int, Any]] = {}
    column = integers(distinct.setdefault(key(value), (len(distinct), value))[0] for value in values)
    pickled = tuple(pickle.dumps(value) for _, value in distinct.values())
    return pack_table((pickled, pack_rows(column[:, None])))


def unpack_values(data: bytes) -> tuple[Any, ...]:
    """Return what ``pack_values`` has packed: one object for all values that are equal. Do not change it."""
    pickled, packed = unpack_table(data)
    distinct = [pickle.loads(each) for each in pickled]  # noqa: S301 - as in unpack_table
    return tuple(distinct[number] for number in unpack_rows(packed).reshape(-1).tolist())


def pack_table(value: Any) -> bytes:
    """Return the bytes of a value that many ranks have in common."""
    return zlib.compress(pickle.dumps(value), 1)


@lru_cache(TABLES)
def unpack_table(data: bytes) -> Any:
    """Return what ``pack_table`` has packed: one object for all ranks that sent the same. Do not change it.

    The bytes come from a rank of this program, which sends pickles anyway.
    """
    return pickle.loads(zlib.decompress(data))  # noqa: S301
