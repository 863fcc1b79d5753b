"""A plain training script with FSDP2 and torchrun's variables, and the promises of a run.

ropewalk run command resources.nodes=2 -- python plain.py
"""

import argparse
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import ropewalk


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=1e-2)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
    start = load(model, optimizer, rank)
    for step in range(start, arguments.steps):
        generator = torch.Generator().manual_seed(step * world + rank)
        x = torch.randn(8, 16, generator=generator)
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(arguments.pause)
        ropewalk.log({"train/loss": loss.item()}, step=step + 1, reduce="mean")
        stop = ropewalk.stop_requested()
        if stop or (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            save(model, optimizer, step + 1, rank)
        if stop and step + 1 < arguments.steps:
            dist.destroy_process_group()
            sys.exit(85)
    total = sum(p.full_tensor().double().sum() for p in model.parameters())
    if rank == 0:
        print(f"final {total.item():.17g}", flush=True)
    dist.destroy_process_group()


def load(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> int:
    latest = ropewalk.latest_checkpoint()
    if latest is None:
        return 0
    state = torch.load(latest / f"rank-{rank}.pt", weights_only=True)
    for name, parameter in model.named_parameters():
        parameter.to_local().data.copy_(state["model"][name])
    for parameter in model.parameters():  # make the state, then fill it
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        parameter.to_local().data.copy_(state["model"][name])
    for (_, parameter), saved in zip(model.named_parameters(), state["optimizer"], strict=True):
        moments = optimizer.state[parameter]
        moments["step"].copy_(saved["step"])
        for key in ("exp_avg", "exp_avg_sq"):
            moments[key].to_local().copy_(saved[key])
    return int(state["step"])


def save(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, rank: int) -> None:
    folder = ropewalk.checkpoint_dir() / f"step-{step}"
    folder.mkdir(exist_ok=True)
    moments = [
        {"step": o["step"], "exp_avg": o["exp_avg"].to_local(), "exp_avg_sq": o["exp_avg_sq"].to_local()}
        for o in (optimizer.state[p] for p in model.parameters())
    ]
    weights = {name: p.to_local() for name, p in model.named_parameters()}
    torch.save({"model": weights, "optimizer": moments, "step": step}, folder / f"rank-{rank}.pt")
    ropewalk.commit_checkpoint(folder, keep=3)


if __name__ == "__main__":
    main()
