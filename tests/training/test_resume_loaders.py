"""Data loaders that are stopped inside an epoch: the rest of it comes, and the epochs after it in the same order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from checkpoint_sidecar import Checkpointer
from checkpoint_sidecar.training.state.application import PerRank
from training.resuming import NO_SCHEDULE

pytestmark = pytest.mark.filterwarnings("ignore")


def loader(workers: int) -> StatefulDataLoader[int]:
    samples = list(range(12))
    sampler = RandomSampler(samples, generator=torch.Generator().manual_seed(7))
    return StatefulDataLoader(samples, batch_size=2, sampler=sampler, generator=torch.Generator(), num_workers=workers)


def epoch(data: StatefulDataLoader[int]) -> list[list[int]]:
    return [batch.tolist() for batch in data]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batches", [2, 6, 8], ids=["inside an epoch", "at the end of one", "inside the second"])
def test_a_loader_whose_sampler_has_a_generator_of_its_own_resumes_in_order(
    tmp_path: Path, batches: int, workers: int
) -> None:
    undisturbed = loader(workers)
    expected = [batch for _ in range(4) for batch in epoch(undisturbed)]

    before = loader(workers)
    seen: list[list[int]] = []
    while len(seen) < batches:
        for batch in before:
            seen.append(batch.tolist())
            if len(seen) == batches:
                with Checkpointer({"data": PerRank(before)}, str(tmp_path / "run"), save=NO_SCHEDULE) as checkpointer:
                    checkpointer.restore()
                    checkpointer.save(batches)
                break

    after = loader(workers)
    with Checkpointer({"data": PerRank(after)}, str(tmp_path / "run"), save=NO_SCHEDULE) as checkpointer:
        checkpointer.restore()
    rest = [batch for _ in range(3) for batch in epoch(after)]
    assert seen + rest == expected[: batches + len(rest)]
