"""Train a small model with Ray Train, so that losing a worker loses nothing.

It joins the cluster at ``RAY_ADDRESS``, or starts Ray on this machine::

    RAY_TRAIN_V2_ENABLED=1 python examples/ray_train.py --url s3://training/small --steps 100
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn

from checkpoint_sidecar.integrations.ray import RaySnapshots


def train(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank = ray.train.get_context().get_world_rank()
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    folder = Path(tempfile.mkdtemp())
    file = folder / "state.pt"
    with RaySnapshots(folder, config["url"]) as snapshots:
        restored = snapshots.restore()
        begin = restored.step if restored else 0
        if restored:
            state = torch.load(file, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        for step in range(begin + 1, config["steps"] + 1):
            generator = torch.Generator().manual_seed(1_000 * step + rank)
            loss = model(torch.randn(8, 16, generator=generator)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if rank == 0:
                with open(config["log"], "a") as log:
                    print(f"step {step} loss {loss.item():.9f} in process {os.getpid()}", file=log)
            time.sleep(config["pause"])
            if step % config["every"] and step != config["steps"]:
                continue
            # Each worker into its own folder. Equal files are stored once.
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            metrics = {"loss": loss.item()}
            ray.train.report(
                metrics, checkpoint=snapshots.checkpoint, checkpoint_upload_fn=snapshots.upload(step, metrics)
            )
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="steps between two snapshots")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--failures", type=int, default=3, help="how many lost workers Ray replaces")
    parser.add_argument("--storage", default=tempfile.gettempdir(), help="where Ray keeps its own state")
    parser.add_argument("--log", default=os.devnull, help="file for the losses")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to sleep after each step")
    arguments = parser.parse_args()

    here = {"num_cpus": arguments.workers + 1, "object_store_memory": 100_000_000, "_node_ip_address": "127.0.0.1"}
    ray.init(include_dashboard=False, **({} if "RAY_ADDRESS" in os.environ else here))
    trainer = TorchTrainer(
        train,
        train_loop_config=vars(arguments),
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=arguments.workers),
        run_config=ray.train.RunConfig(
            storage_path=arguments.storage,
            failure_config=ray.train.FailureConfig(max_failures=arguments.failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    result = trainer.fit()
    print(f"finished {arguments.steps} steps, and Ray knows {result.checkpoint.path}", flush=True)


if __name__ == "__main__":
    main()
