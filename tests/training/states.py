"""Random trees of state: every kind of value, nested at random, drawn alike wherever the seed is the same."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import pathlib
import random
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
KEYS: tuple[Any, ...] = (
    "a",
    "b",
    "a.b",
    "",
    "state",
    "params",
    "__packed__",
    0,
    1,
    -1,
    "0",
    None,
    1.5,
    True,
    (1, "x"),
    b"k",
)


class Held:
    """An object with a state."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def states(seed: int, *, meshes: tuple[Any, ...] = ()) -> Any:
    """One tree.

    Args:
        meshes: Device meshes that its sharded tensors may be on.
    """
    return _States(seed, meshes).tree(0)


class _States:
    def __init__(self, seed: int, meshes: tuple[Any, ...]) -> None:
        self._random = random.Random(seed)
        self._torch = torch.Generator().manual_seed(seed)
        self._meshes = meshes

    def tree(self, depth: int) -> Any:
        draw = self._random.random()
        if depth < 4 and draw < (0.9 if depth == 0 else 0.5):
            return self._container(depth)
        return self.tensor() if draw < 0.75 else self._scalar()

    def _container(self, depth: int) -> Any:
        size = self._random.randrange(5)
        kind = self._random.choice(["dict", "dict", "list", "tuple", "ordered", "deque", "default", "counter", "set"])
        if kind in ("counter", "set"):
            members = self._random.sample(KEYS, min(size, len(KEYS)))
            return collections.Counter(members) if kind == "counter" else set(members)
        if kind in ("list", "tuple", "deque"):
            members = [self.tree(depth + 1) for _ in range(size)]
            if kind == "deque":
                return collections.deque(members, 9)
            return members if kind == "list" else tuple(members)
        members = [(key, self.tree(depth + 1)) for key in self._random.sample(KEYS, size)]
        if kind == "default":
            return collections.defaultdict(list, members)
        return collections.OrderedDict(members) if kind == "ordered" else dict(members)

    def tensor(self) -> Any:
        dtype = self._random.choice(DTYPES)
        shape = self._random.choice([(), (0,), (3,), (2, 0), (4, 3), (1, 1), (200, 101), (5, 2, 3)])
        values = torch.randint(-3, 100, shape, generator=self._torch)
        tensor = (values % 2 == 0) if dtype is torch.bool else values.to(dtype)
        layout = self._random.choice(
            ["plain", "plain", "view", "transposed", "parameter", "sparse", "sharded", "sharded"]
        )
        if layout == "sharded" and self._meshes and tensor.ndim and dtype not in (torch.float8_e4m3fn,):
            mesh = self._random.choice(self._meshes)
            placements = [
                self._random.choice([Replicate(), Shard(0), Shard(tensor.ndim - 1)]) for _ in range(mesh.ndim)
            ]
            return distribute_tensor(tensor, mesh, placements)
        if layout == "view" and tensor.ndim:
            return tensor[::2]
        if layout == "transposed" and tensor.ndim == 2:
            return tensor.t()
        if layout == "parameter" and dtype.is_floating_point:
            return nn.Parameter(tensor, requires_grad=self._random.random() < 0.5)
        if layout == "sparse" and dtype is torch.float32 and tensor.ndim:
            return tensor.to_sparse()
        return tensor

    def _scalar(self) -> Any:
        draw = self._random
        makers: list[Callable[[], Any]] = [
            lambda: None,
            lambda: draw.random() < 0.5,
            lambda: draw.choice([0, 1, -1, 2**63, 2**64, -(2**70)]),
            lambda: draw.choice([0.0, -0.0, float("nan"), float("inf"), 1e-300, draw.random()]),
            lambda: draw.choice(["", "text", "ü€", "\ud800", "a.b"]),
            lambda: draw.randbytes(draw.randrange(4)),
            lambda: bytearray(b"x"),
            lambda: complex(1, -0.0),
            lambda: range(draw.randrange(5)),
            lambda: slice(None, 3),
            lambda: frozenset({1, "a"}),
            lambda: dt.datetime(2026, 1, 1, 2, 3, 4, 5, tzinfo=dt.timezone(dt.timedelta(hours=1))),
            lambda: dt.timedelta(seconds=draw.random()),
            lambda: decimal.Decimal("1.10"),
            lambda: fractions.Fraction(1, 3),
            lambda: uuid.UUID(int=draw.getrandbits(128)),
            lambda: pathlib.Path("/data"),
            lambda: np.float32(1.5),
            lambda: np.arange(draw.choice([0, 3, 20_000])).astype(draw.choice(["i2", "f8", "?"])),
            lambda: np.datetime64("2026-01-01"),
            lambda: torch.bfloat16,
            lambda: torch.device("cpu"),
            lambda: torch.Size([1, 2]),
        ]
        return draw.choice(makers)()
