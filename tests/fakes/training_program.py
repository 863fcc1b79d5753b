"""A user's training program that starts fast: one tensor, gradients averaged over the ranks, checkpoints of its own.

It takes the same arguments and prints the same last line as jobs/configs/examples/plain.py, which imports FSDP2.
"""

import argparse
import sys
import time

import torch
import torch.distributed as dist

import ropewalk


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.0)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    latest = ropewalk.latest_checkpoint()
    saved = torch.load(latest / f"rank-{rank}.pt") if latest else {"step": 0, "weight": torch.zeros(16)}
    weight = saved["weight"]
    for step in range(saved["step"], arguments.steps):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step * world + rank))
        error = x @ weight - x.sum(1)
        gradient = x.T @ error / 4
        dist.all_reduce(gradient)
        weight = weight - 0.01 * gradient / world
        time.sleep(arguments.pause)
        ropewalk.log({"train/loss": error.pow(2).mean().item()}, step=step + 1, reduce="mean")
        stop = ropewalk.stop_requested()
        if stop or (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            folder = ropewalk.checkpoint_dir() / f"step-{step + 1}"
            folder.mkdir(exist_ok=True)
            torch.save({"step": step + 1, "weight": weight}, folder / f"rank-{rank}.pt")
            ropewalk.commit_checkpoint(folder, keep=3)
        if stop and step + 1 < arguments.steps:
            dist.destroy_process_group()
            sys.exit(85)
    if rank == 0:
        print(f"final {weight.double().sum().item():.17g}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
