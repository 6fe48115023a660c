"""Publish each new best snapshot of a run as safetensors, while it trains.

    python publish.py s3://training/llama-7b s3://models/llama-7b config.json

Needs a policy with `keepBest`, which says what best means. Training is not disturbed, and torch is not needed.
"""

import sys

from checkpoint_sidecar import export, open_run

source, destination, *beside = sys.argv[1:]
run = open_run(source)
published = ""
for _ in run.follow(newest_only=True):
    best = run.best
    if best is not None and best.id != published:
        record = export(run, f"{destination}/step-{best.step}", selector=best.id, to="hf", beside=beside)
        published = best.id
        print(f"published step {record.step}: {record.tensors} tensors in {len(record.files)} files", flush=True)
