"""A pickle interpreter that makes plain data only and asks its owner for everything else.

Python's unpickler calls any callable that a pickle names, sets attributes of any object on its stack, allocates as much
memory as a length field says, and hashes tuples that are nested in themselves. Restricting the names it may look up
prevents none of that. This interpreter makes numbers, strings, tuples, lists and dicts; it passes names, calls and
state to its owner.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Protocol

from checkpoint_sidecar.core.garbage import collection_paused

_MEMORY_PER_BYTE = 4
"""Minimum bytes of a pickle for each tuple, list, dict and object in it, beyond the first thousand."""
_REFERENCES_PER_BYTE = 64
"""Maximum references to parts of shared tuples for each byte of a pickle, beyond the first 100,000."""
_MOST_ON_STACK = 1_000_000
_MOST_NESTED = 10_000
_MOST_INTEGER_BYTES = 2048
_OPCODES_BETWEEN_CHECKS = 4096

_SIGNED, _SHORT, _UNSIGNED, _FLOAT = (struct.Struct(form) for form in ("<i", "<H", "<I", ">d"))


class RefusedError(Exception):
    """The pickle is well-formed, but does something that safe pickles do not do."""


class MalformedError(Exception):
    """The bytes are not a pickle."""


class PickleHost(Protocol):
    """Decides about everything in a pickle that is not plain data.

    All methods raise ``RefusedError`` to refuse.

    Attributes:
        unshared: Types whose values may not be referred to twice.
    """

    unshared: frozenset[type]

    def find(self, module: str, name: str) -> Any:
        """Return the value that stands for a name."""

    def make(self, function: Any, arguments: Any) -> Any:
        """Return the result of a call, or a new instance."""

    def build(self, instance: Any, state: Any) -> Any:
        """Return the instance with its state."""

    def persistent(self, identifier: Any) -> Any:
        """Return a value that is stored outside the pickle."""

    def put(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        """Set items of a mapping."""

    def append(self, target: Any, items: list[Any]) -> None:
        """Add items to a list or set."""


def read(data: bytes, owner: PickleHost) -> Any:
    """Return the value that a pickle encodes.

    Raises:
        RefusedError: The owner refused something, or the pickle needs more memory than its size justifies.
        MalformedError: The bytes are not a pickle of the opcodes that ``pickle`` and ``torch.save`` write.
    """
    try:
        with collection_paused():
            return _read(data, owner)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise MalformedError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _read(data: bytes, owner: PickleHost) -> Any:
    # One loop, the most frequent opcodes first: a call for each would take twice as long.
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: list[Any] = []
    push = stack.append
    memoize = memo.append
    size = len(data)
    containers = size // _MEMORY_PER_BYTE + 1000
    references = size * _REFERENCES_PER_BYTE + 100_000
    find, make, build, put, unshared = owner.find, owner.make, owner.build, owner.put, owner.unshared
    position = 0
    while True:
        for _ in range(_OPCODES_BETWEEN_CHECKS):
            opcode = data[position]
            position += 1
            if opcode == 0x94:  # MEMOIZE
                memoize(stack[-1])
            elif opcode == 0x6A or opcode == 0x68:  # LONG_BINGET, BINGET
                if opcode == 0x68:
                    value = memo[data[position]]
                    position += 1
                else:
                    value = memo[_UNSIGNED.unpack_from(data, position)[0]]
                    position += 4
                kind = type(value)
                if kind is tuple:
                    references -= _weight(value, references)
                elif kind in unshared:
                    raise RefusedError(f"it refers to one {kind.__name__} in two places")
                push(value)
            elif opcode == 0x4B:  # BININT1
                push(data[position])
                position += 1
            elif opcode == 0x28:  # MARK
                marks.append(stack)
                stack = []
                push = stack.append
            elif opcode == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
                containers -= 1
            elif opcode == 0x52 or opcode == 0x81:  # REDUCE, NEWOBJ
                arguments = stack.pop()
                if type(arguments) is not tuple:
                    raise MalformedError(f"arguments are a {type(arguments).__name__}")
                stack[-1] = make(stack[-1], arguments)
                containers -= 1
            elif opcode == 0x29:  # EMPTY_TUPLE
                push(())
            elif opcode == 0x62:  # BUILD
                state = stack.pop()
                stack[-1] = build(stack[-1], state)
            elif opcode == 0x7D:  # EMPTY_DICT
                push({})
                containers -= 1
            elif opcode == 0x75:  # SETITEMS
                items, stack = stack, marks.pop()
                push = stack.append
                put(stack[-1], items[::2], items[1::2])
            elif opcode == 0x8C or opcode == 0x58:  # SHORT_BINUNICODE, BINUNICODE
                if opcode == 0x8C:
                    length = data[position]
                    position += 1
                else:
                    length = _UNSIGNED.unpack_from(data, position)[0]
                    position += 4
                push(str(_bytes(data, position, length), "utf-8", "surrogatepass"))
                position += length
            elif opcode == 0x86:  # TUPLE2
                second = stack.pop()
                stack[-1] = (stack[-1], second)
                containers -= 1
            elif opcode == 0x4D:  # BININT2
                push(_SHORT.unpack_from(data, position)[0])
                position += 2
            elif opcode == 0x4A:  # BININT
                push(_SIGNED.unpack_from(data, position)[0])
                position += 4
            elif opcode == 0x4E:  # NONE
                push(None)
            elif opcode == 0x87:  # TUPLE3
                third, second = stack.pop(), stack.pop()
                stack[-1] = (stack[-1], second, third)
                containers -= 1
            elif opcode == 0x74:  # TUPLE
                items, stack = stack, marks.pop()
                push = stack.append
                push(tuple(items))
                containers -= 1
            elif opcode == 0x93:  # STACK_GLOBAL
                name, module = stack.pop(), stack.pop()
                push(find(_text(module), _text(name)))
            elif opcode == 0x63:  # GLOBAL
                end = data.index(b"\n", position)
                last = data.index(b"\n", end + 1)
                push(find(data[position:end].decode(), data[end + 1 : last].decode()))
                position = last + 1
            elif opcode == 0x95:  # FRAME
                position += 8
            elif opcode == 0x71 or opcode == 0x72:  # BINPUT, LONG_BINPUT
                index, position = _number(data, position, wide=opcode == 0x72)
                # Picklers number what they remember in order.
                if index == len(memo):
                    memoize(stack[-1])
                elif index < len(memo):
                    memo[index] = stack[-1]
                else:
                    raise RefusedError("it remembers values out of order")
            elif opcode == 0x5D:  # EMPTY_LIST
                push([])
                containers -= 1
            elif opcode == 0x65 or opcode == 0x90:  # APPENDS, ADDITEMS
                items, stack = stack, marks.pop()
                push = stack.append
                owner.append(stack[-1], items)
            elif opcode == 0x61:  # APPEND
                value = stack.pop()
                owner.append(stack[-1], [value])
            elif opcode == 0x73:  # SETITEM
                value, key = stack.pop(), stack.pop()
                put(stack[-1], [key], [value])
            elif opcode == 0x88 or opcode == 0x89:  # NEWTRUE, NEWFALSE
                push(opcode == 0x88)
            elif opcode == 0x47:  # BINFLOAT
                push(_FLOAT.unpack_from(data, position)[0])
                position += 8
            elif opcode == 0x8A or opcode == 0x8B:  # LONG1, LONG4
                length, position = _number(data, position, wide=opcode == 0x8B)
                if length > _MOST_INTEGER_BYTES:
                    raise RefusedError(f"it holds an integer of {length} bytes")
                push(int.from_bytes(_bytes(data, position, length), "little", signed=True))
                position += length
            elif opcode == 0x43 or opcode == 0x42 or opcode == 0x55:  # SHORT_BINBYTES, BINBYTES, SHORT_BINSTRING
                length, position = _number(data, position, wide=opcode == 0x42)
                push(_bytes(data, position, length))
                position += length
            elif opcode == 0x51:  # BINPERSID
                stack[-1] = owner.persistent(stack[-1])
            elif opcode == 0x8F:  # EMPTY_SET
                push(set())
                containers -= 1
            elif opcode == 0x80:  # PROTO
                position += 1
            elif opcode == 0x2E:  # STOP
                return stack.pop()
            elif opcode in _OPCODES:
                raise RefusedError(f"it uses the pickle opcode {_OPCODES[opcode]}")
            else:
                raise MalformedError(f"{opcode:#x} is not a pickle opcode")
        if containers < 0 or len(stack) > _MOST_ON_STACK or len(marks) > _MOST_NESTED:
            raise RefusedError("it would take far more memory than its size")


_OPCODES = {
    getattr(pickle, name)[0]: name
    for name in pickle.__all__
    if name.isupper() and isinstance(getattr(pickle, name), bytes) and len(getattr(pickle, name)) == 1
}


def _bytes(data: bytes, position: int, length: int) -> bytes:
    found = data[position : position + length]
    if len(found) < length:
        raise MalformedError("it ends in the middle of a value")
    return found


def _number(data: bytes, position: int, *, wide: bool) -> tuple[int, int]:
    """Return a length or index of one byte, or of four if ``wide``, and the position after it."""
    if wide:
        return _UNSIGNED.unpack_from(data, position)[0], position + 4
    return data[position], position + 1


def _text(value: Any) -> str:
    if type(value) is not str:
        raise MalformedError("a name is not a string")
    return value


def _weight(value: tuple[Any, ...], limit: int) -> int:
    """Count the parts of a tuple, counting a tuple again for every reference to it."""
    count, rest = 0, [value]
    while rest:
        each = rest.pop()
        count += 1 + len(each)
        if count > limit:
            raise RefusedError("it nests tuples in themselves, which would take too long to hash")
        rest += [part for part in each if type(part) is tuple]
    return count
