"""Every Python block of the documentation runs: on a real model and optimizer, with a folder in place of the bucket."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import checkpoint_sidecar
from support.markdown import PAGES, REPOSITORY, blocks

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


def train_on(batch):
    optimizer.zero_grad()
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def train_step(step):
    return train_on(dataset[step].unsqueeze(0))


rank, world_size = 0, 1
state = {"model": model, "optimizer": optimizer}
url = "s3://training/saved/step-100"
dcp.save(state, storage_writer=CheckpointWriter(url))
"""

BLOCKS = blocks("python")
"""A block runs after those above it on its page, so that a page may continue its example."""


OF_FRAMEWORKS = {f"docs/trainers/{name}.md" for name in ("ray", "torch_checkpointing", "torchtitan")}
"""Pages for packages that only `make test-frameworks` installs; it runs the examples that they are taken from."""

FORK_FOR_EACH = """
import json, os, runpy, sys
import torch._dynamo, torch.distributed.checkpoint, torchdata.stateful_dataloader
import checkpoint_sidecar.training.checkpointer, checkpoint_sidecar.training.dcp.dropin

failed = []
for path, url, steps in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.environ["CHECKPOINT_URL"] = url
        os.environ["STEPS"] = str(steps)
        runpy.run_path(path)
        sys.exit(0)
    failed += [path] * bool(os.wait()[1])
sys.exit(f"failed: {failed}" if failed else 0)
"""
"""Programs run in processes of their own, because they change torch; it is imported only once."""


def program(page: str, bucket: Path) -> str:
    """The page as one program, its URLs in a folder."""
    text = PRELUDE
    for block in BLOCKS:
        if block.page == page and not block.noted("not run"):
            text += f"\n# {block.name}\n{block.text}"
    return in_folder(text, bucket)


def in_folder(text: str, bucket: Path) -> str:
    text = text.replace('fsspec.filesystem("s3")', 'fsspec.filesystem("file")')
    return re.sub(r"\b(s3|gs|az)://(?=\w)", f"{bucket.as_uri()}/", text)


EXACT = """
import os

losses = {}
train = train_on
train_on = lambda batch: losses.setdefault(len(losses), train(batch))
model[1].p = 0.5  # much dropout
total_steps = int(os.environ["STEPS"])
{recipe}
print([*losses.values()], [*map(float, next(model.parameters()).flatten())], sep=", ")
"""
UNTIL = (5, 16, 17, 20)
"""Steps at which a run ends and starts anew: in the middle of an epoch of 16 steps, at its end and right after."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """All pages, then the recipe for an exact resume: as one run, and as one that is interrupted."""
    folder = tmp_path_factory.mktemp("pages")
    jobs = []
    for page in sorted({block.page for block in BLOCKS} - OF_FRAMEWORKS):
        name = f"page_{Path(page).stem}"  # not that of a package that it imports
        (folder / f"{name}.py").write_text(program(page, folder / f"bucket-{name}"))
        jobs.append((f"{folder}/{name}.py", f"file://{folder}/injected-{name}", 0))
    recipe = next(block.text for block in BLOCKS if block.page == "docs/recipes.md")
    exact = folder / "exact.py"
    exact.write_text(in_folder(PRELUDE + EXACT.replace("{recipe}", recipe), folder / "bucket-exact"))
    jobs += [(str(exact), f"file://{folder}/undisturbed", UNTIL[-1])]
    jobs += [(str(exact), f"file://{folder}/interrupted", steps) for steps in UNTIL]
    environment = {**os.environ, "CHECKPOINT_RUN": "cluster/namespace/run"}
    command = [sys.executable, "-W", "ignore", "-c", FORK_FOR_EACH, json.dumps(jobs)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=280)


def test_the_python_of_every_page_runs_as_it_stands(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, finished.stderr[-5000:]


def test_the_recipe_for_an_exact_resume_is_exact(finished: subprocess.CompletedProcess[str]) -> None:
    undisturbed, *parts = (json.loads(f"[{line}]") for line in finished.stdout.splitlines()[-1 - len(UNTIL) :])
    assert [loss for losses, _ in parts for loss in losses] == undisturbed[0]
    assert parts[-1][1] == undisturbed[1]


def test_a_block_that_does_not_run_says_why_and_is_python_at_least() -> None:
    for block in BLOCKS:
        compile(block.text, block.name, "exec")
        assert not block.note or len(block.noted("not run").split()) >= 3, block.name


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_imports_from_the_library_is_public(page: str) -> None:
    """In prose too: a name such as `StoreSettings` that a reader has to write comes from the package itself."""
    source = "\n".join(block.text for block in BLOCKS if block.page == page)
    assert re.findall(r"from checkpoint_sidecar\.(?!integrations\.)\S+ import", source) == []
    prose = (REPOSITORY / page).read_text()
    called = set(re.findall(r"`(?:\w+=)?([A-Z]\w+[a-z]\w*)\(", prose)) - STOCK
    imported = set(re.findall(r"\w+", " ".join(re.findall(r"import (.+)", source))))
    assert sorted(called - imported - set(checkpoint_sidecar.__all__)) == []


STOCK = {"FileSystemWriter", "FsspecWriter", "FsspecReader", "Generator", "SingleDeviceStrategy"}
"""Classes of torch and Lightning."""


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
