"""CRC32C (Castagnoli polynomial, RFC 3720 appendix B.4) of blocks, and of their concatenation."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from crc32c import crc32c

from checkpoint_sidecar.store.base import Buffer

_POLYNOMIAL = 0x82F63B78  # without x^32; as in checksums, the highest bit is the coefficient of x^0
_ONE = 1 << 31
_BYTE = 1 << (31 - 8)  # x^8


def block_checksums(buffers: Iterable[Buffer], block_bytes: int) -> list[int]:
    """Return the CRC32C of each block of the concatenated buffers; the last block may be shorter.

    Releases the interpreter's lock.

    Args:
        block_bytes: Block size.
    """
    checksums: list[int] = []
    current, room = 0, block_bytes
    for buffer in buffers:
        rest = memoryview(buffer).cast("B")
        while rest:
            piece, rest = rest[:room], rest[room:]
            current, room = crc32c(piece, current), room - len(piece)
            if not room:
                checksums.append(current)
                current, room = 0, block_bytes
    if room < block_bytes:
        checksums.append(current)
    return checksums


def combine(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC32C of two concatenated byte strings, from the checksum of each.

    Args:
        second_bytes: Length of the second one.
    """
    # A checksum is a remainder in GF(2)[x]; bytes that follow multiply what came before by a power of x.
    return _product(first, _power(second_bytes)) ^ second


def of_blocks(checksums: Sequence[int], block_bytes: int, size: int) -> int:
    """Return the CRC32C of ``size`` bytes whose blocks have these checksums."""
    if not checksums:
        return 0
    *full, last = checksums
    lowest, low, high, highest = _block_factors(block_bytes)
    whole = 0
    for checksum in full:
        whole = lowest[whole & 255] ^ low[whole >> 8 & 255] ^ high[whole >> 16 & 255] ^ highest[whole >> 24] ^ checksum
    return combine(whole, last, size - len(full) * block_bytes)


def of_parts(checksums: Iterable[int], sizes: Iterable[int]) -> int:
    """Return the CRC32C of concatenated byte strings of these sizes in bytes; 0 of none."""
    whole = 0
    for checksum, size in zip(checksums, sizes, strict=True):
        whole = combine(whole, checksum, size)
    return whole


def packed(checksums: Sequence[int]) -> bytes:
    """Return checksums as a manifest holds them: four bytes each, the highest first."""
    return struct.pack(f">{len(checksums)}I", *checksums)


@lru_cache(maxsize=16)
def _block_factors(block_bytes: int) -> tuple[tuple[int, ...], ...]:
    """Return, for each byte of a checksum, a table of its new values after ``block_bytes`` of data.

    A snapshot of a terabyte has a quarter of a million blocks, and combining them holds the interpreter's lock.
    """
    power = _power(block_bytes)
    return tuple(tuple(_product(value << shift, power) for value in range(256)) for shift in (0, 8, 16, 24))


@lru_cache(maxsize=256)
def _power(count: int) -> int:
    """Return the power of x by which ``count`` following bytes multiply a checksum."""
    result, square = _ONE, _BYTE
    while count:
        if count & 1:
            result = _product(result, square)
        square = _product(square, square)
        count >>= 1
    return result


def _product(left: int, right: int) -> int:
    result = 0
    while left:
        if left & _ONE:
            result ^= right
        left = left << 1 & 0xFFFFFFFF
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return result
