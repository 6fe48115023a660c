"""Compare two snapshots bit for bit, read with stock torch.distributed.checkpoint: none of our code is in the way.

Imports nothing of this repository, and torch only to compare: a result can be held without it. As a program,
`comparison.py <url> <url> <step>` prints the result as JSON; keys and endpoint of the store come from the environment.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

State = dict[str, object]


@dataclass(frozen=True)
class Comparison:
    """What two states have in common.

    Attributes:
        tensors: How many tensors both have.
        differing: Names that only one has, or whose bytes differ.
    """

    tensors: int
    differing: tuple[str, ...]

    @property
    def identical(self) -> bool:
        return self.tensors > 0 and not self.differing


def read_step(url: str, step: int, **storage_options: Any) -> State:
    """Everything one step of a run holds: unsharded tensors and plain values by name."""
    import torch
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.fsspec_filesystem import FsspecReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FsspecReader(f"{url}/step-{step}", **storage_options)
    state: State = {
        name: torch.empty(item.size, dtype=item.properties.dtype) if isinstance(item, TensorStorageMetadata) else None
        for name, item in reader.read_metadata().state_dict_metadata.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as asked for by no_dist
        state_dict_loader.load(state, storage_reader=reader, no_dist=True)
    return state


def compare(left: State, right: State) -> Comparison:
    """Tensors are compared by dtype, shape and bytes (so that NaNs count as equal to themselves), the rest by value."""
    import torch

    both = left.keys() & right.keys()
    differing = sorted((left.keys() ^ right.keys()) | {name for name in both if not _same(left[name], right[name])})
    return Comparison(sum(isinstance(left[name], torch.Tensor) for name in both), tuple(differing))


def _same(left: object, right: object) -> bool:
    import torch

    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return type(left) is type(right) and left == right
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(_bytes(left), _bytes(right))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.contiguous().flatten().view(torch.uint8)


def main() -> None:
    left, right, step = sys.argv[1:]
    print(json.dumps(dataclasses.asdict(compare(read_step(left, int(step)), read_step(right, int(step))))))


if __name__ == "__main__":
    main()
