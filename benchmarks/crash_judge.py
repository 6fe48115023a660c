"""Kills training jobs at their file events by the public judge ckpt-chaos, ours and the frameworks' own checkpointing.

    make test-frameworks needs the same group: uv sync --group frameworks
    python benchmarks/crash_judge.py --output build/bench/crash_judge.json

The judge runs a job undisturbed and records each file that it creates, renames or removes. Then it kills a copy of the
job at each of these events, or halfway through the file, starts it again, and compares the end with the undisturbed
one. A job of ours ends with a digest of everything in its last snapshot, files included. The targets of the frameworks
are the judge's own. The same forked interpreter runs all of them, see ``warm_python``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.utils._pytree import tree_flatten_with_path

from checkpoint_sidecar import CheckpointReader, fetch_files, open_run
from checkpoint_sidecar.core.folder_index import INDEX_NAME
from warm_python import warm_python

REPOSITORY = Path(__file__).parents[1]
ALONE = ["RANK=0", "WORLD_SIZE=1", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=0"]
OURS: dict[str, tuple[str, ...]] = {
    "Checkpointer (examples/train.py)": ("train.py", "--steps=6", "--every=2"),
    "Lightning with SnapshotCallback (examples/lightning_train.py)": (
        "lightning_train.py",
        "--url=file://{out}/run",
        "--strategy={strategy}",
        "--epochs=1",
        "--every=2",
    ),
    "Hugging Face Trainer with TrainerSnapshots (examples/transformers_train.py)": (
        "transformers_train.py",
        "--output={out}/trainer",
        "--steps=4",
        "--save-every=2",
    ),
}
ARGUMENTS = "training_args.bin"
"""Trainer's arguments, in its checkpoints: not state, and they name the folder, which differs from kill to kill."""
THEIRS = {
    "Hugging Face Trainer": "hf_trainer",
    "Lightning": "lightning_trainer",
    "torch.save in a loop": "loop_ddp",
    "torch.distributed.checkpoint in a loop": "dcp_ddp",
}
MODULES = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict",
    "torchdata.stateful_dataloader",
    "transformers.models.gpt2",
    "transformers.models.llama",
    "transformers.trainer",
    "lightning.pytorch",
    "checkpoint_sidecar.integrations.lightning",
    "checkpoint_sidecar.integrations.transformers",
]
VERDICTS = ("PASS", "HARD_FAIL", "SILENT_DIVERGENCE", "LOST_WORK", "CONTROL_FAIL")


def judge_ours(name: str, ranks: int, python: str, work: Path, points: int) -> Counter[str]:
    """Return how many kills got each verdict.

    The judge tears a file when it is closed. Ours has its name by then, or none any more, so that nothing is torn:
    instead each kill is repeated with the loss of all that was not synced to the disk.
    """
    script, *options = OURS[name]
    options = [option.replace("{strategy}", "single" if ranks == 1 else "ddp") for option in options]
    environment = ["CHECKPOINT_URL=file://{out}/run", "CHECKPOINT_RUN=local/local/judge", "OMP_NUM_THREADS=1"]
    if ranks > 1:
        environment.append(f"LOCAL_WORLD_SIZE={ranks}")
    elif script == "train.py":
        environment += ALONE
    command = ["env", *environment, python, str(REPOSITORY / "examples" / script), *options]
    result = shlex.join([python, __file__, "--digest", "{out}/run"])
    judged = [
        f"--ranks={ranks}",
        f"--max-points={points}",
        "--modes=before,unsynced",
        "--timeout=240",
        "--step-regex",
        r"restored step (\d+)",
    ]
    return _judged(["run", *judged, "--result-cmd", result, f"--work={work}", "--", *command], python, work)


def judge_theirs(name: str, ranks: int, python: str, work: Path) -> Counter[str]:
    return _judged(["bench", THEIRS[name], f"--ranks={ranks}", "--jobs=1", f"--work={work}"], python, work)


def _judged(arguments: list[str], python: str, work: Path) -> Counter[str]:
    # The judge starts its own targets by sys.executable.
    program = f"import sys; sys.executable = {python!r}; from ckpt_chaos.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=REPOSITORY)
    rows = _rows(work)
    verdicts = [row.verdict for row in rows if row.crashed]
    verdicts += ["CONTROL_FAIL" for row in rows if row.verdict == "CONTROL_FAIL"]
    if not verdicts:
        raise SystemExit(f"judge {work}: no verdict.\n{done.stdout}\n{done.stderr}")
    print(done.stdout, flush=True)
    return Counter(verdicts)


def _rows(work: Path) -> list[Any]:
    from ckpt_chaos.runner import rejudge

    return list(rejudge(work))


def digest(folder: str) -> str:
    """Return a digest of everything in the newest snapshot of a run in a folder."""
    url = Path(folder).as_uri()
    step = max(snapshot.step for snapshot in open_run(url).snapshots())
    said = hashlib.sha256(str(step).encode())
    parts = [("", _tensors(f"{url}/step-{step}"))]
    if any(Path(folder, f"step-{step}").glob(f"*/{INDEX_NAME}")):
        parts += _files(f"{url}@{step}")
    for name, contents in parts:
        said.update(name.encode())
        for path, value in sorted(tree_flatten_with_path(contents)[0], key=lambda leaf: str(leaf[0])):
            said.update(f"{path}".encode() + _bytes(value))
    return said.hexdigest()


def _tensors(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reader = CheckpointReader(url, trust="full")
    _load_state_dict(found, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return found


def _files(address: str) -> Iterator[tuple[str, Any]]:
    """Yield the files in a snapshot: what ``torch.save`` wrote as objects, whose pickle is not always the same."""
    with tempfile.TemporaryDirectory() as folder:
        fetch_files(address, folder)
        for path in sorted(each for each in Path(folder).rglob("*") if each.is_file() and each.name != ARGUMENTS):
            pickled = path.suffix in (".pt", ".pth")
            yield str(path.relative_to(folder)), torch.load(path, weights_only=False) if pickled else path.read_bytes()


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        value = value.numpy()
    return value.tobytes() if isinstance(value, ndarray) else repr(value).encode()


def table(judged: dict[str, dict[str, int]]) -> str:
    lines = [
        "| job | kills | pass | stays down | differs in silence | lost work |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, counts in judged.items():
        total = sum(counts.values())
        cells = [counts.get("PASS", 0), counts.get("HARD_FAIL", 0) + counts.get("CONTROL_FAIL", 0)]
        cells += [counts.get("SILENT_DIVERGENCE", 0), counts.get("LOST_WORK", 0)]
        lines.append(f"| {name} | {total} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000, help="most kills of each job of ours")
    parser.add_argument("--only", default="", help="part of the names of jobs")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--digest", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.digest:
        print(digest(arguments.digest))
        return
    judged: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder, warm_python(Path(folder), MODULES) as python:
        for number, (name, ranks) in enumerate((name, ranks) for name in (*OURS, *THEIRS) for ranks in arguments.ranks):
            if arguments.only in name:
                work = Path(folder, str(number))
                counts = (
                    judge_ours(name, ranks, python, work, arguments.points)
                    if name in OURS
                    else judge_theirs(name, ranks, python, work)
                )
                judged[f"{name}, {ranks} rank{'s' * (ranks > 1)}"] = dict(counts)
                print(table(judged), flush=True)
                if arguments.output:
                    arguments.output.parent.mkdir(parents=True, exist_ok=True)
                    arguments.output.write_text(json.dumps(judged, indent=1))


if __name__ == "__main__":
    main()
