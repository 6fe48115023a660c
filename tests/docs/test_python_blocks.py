"""Every Python block of the documentation runs: on a real model and optimizer, with a folder in place of the bucket."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import checkpoint_sidecar
from markdown import PAGES, REPOSITORY, blocks

PRELUDE = """
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_sidecar import CheckpointWriter
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
dataset = [torch.full((4,), float(item)) for item in range(64)]
loader = StatefulDataLoader(dataset, batch_size=4, shuffle=True)
total_steps = 4
batches = iter(())


def train_step(step):
    global batches
    batch = next(batches, None)
    if batch is None:
        batches = iter(loader)
        batch = next(batches)
    optimizer.zero_grad()
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


state = {"model": model, "optimizer": optimizer}
url = "s3://training/saved/step-100"
dcp.save(state, storage_writer=CheckpointWriter(url))
"""

BLOCKS = blocks("python")
"""A block runs after those above it on its page, so that a page may go on where it was."""


FORK_FOR_EACH = """
import os, runpy, sys
import torch._dynamo, torch.distributed.checkpoint, torchdata.stateful_dataloader
import checkpoint_sidecar.training.checkpointer, checkpoint_sidecar.training.dropin

failed = []
for page in sys.argv[1:]:
    if os.fork() == 0:
        os.environ["CHECKPOINT_URL"] = f"file://{page}.injected"
        runpy.run_path(page)
        sys.exit(0)
    failed += [page] * bool(os.wait()[1])
sys.exit(f"failed: {failed}" if failed else 0)
"""
"""Pages run in processes of their own, because they change torch; it is imported only once."""


def program(page: str, bucket: Path) -> str:
    """The page as one program, its URLs in a folder."""
    text = PRELUDE
    for block in BLOCKS:
        if block.page == page and not block.noted("not run"):
            text += f"\n# {block.name}\n{block.text}"
    return re.sub(r"\b(s3|gs|az)://(?=\w)", f"{bucket.as_uri()}/", text)


def test_the_python_of_every_page_runs_as_it_stands(tmp_path: Path) -> None:
    programs = []
    for number, page in enumerate(sorted({block.page for block in BLOCKS})):
        programs.append(tmp_path / f"{Path(page).stem}.py")
        programs[-1].write_text(program(page, tmp_path / f"bucket-{number}"))
    environment = {**os.environ, "CHECKPOINT_RUN": "cluster/namespace/run"}
    command = [sys.executable, "-W", "ignore", "-c", FORK_FOR_EACH, *map(str, programs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-5000:]


def test_a_block_that_does_not_run_says_why_and_is_python_at_least() -> None:
    for block in BLOCKS:
        compile(block.text, block.name, "exec")
        assert not block.note or len(block.noted("not run").split()) >= 3, block.name


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_imports_from_the_library_is_public(page: str) -> None:
    """In prose too: a name such as `StoreSettings` that a reader has to write comes from the package itself."""
    source = "\n".join(block.text for block in BLOCKS if block.page == page)
    assert re.findall(r"from checkpoint_sidecar\.\S+ import", source) == []
    prose = (REPOSITORY / page).read_text()
    called = set(re.findall(r"`(?:\w+=)?([A-Z]\w+[a-z]\w*)\(", prose)) - STOCK
    assert sorted(called - set(checkpoint_sidecar.__all__)) == []


STOCK = {"FsspecWriter", "FsspecReader", "Generator"}
"""Classes of torch."""


def test_the_public_names_need_torch_only_where_they_are_torchs() -> None:
    """So that the operator and the command line, which have no torch, can use them."""
    source = textwrap.dedent(
        """
        import sys
        sys.modules["torch"] = None
        from checkpoint_sidecar import Credentials, Owner, SavePolicy, StoreSettings
        StoreSettings("s3://bucket/run", credentials=Credentials({}))
        """
    )
    subprocess.run([sys.executable, "-c", source], check=True)
