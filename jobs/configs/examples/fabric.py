"""Lightning Fabric with the promises of a run.

ropewalk run command resources.nodes=2 -- python fabric.py
"""

import argparse
import os
import sys

import torch
from lightning.fabric import Fabric

import ropewalk


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    strategy = "ddp" if world > 1 else "auto"
    fabric = Fabric(accelerator="auto", devices=local, num_nodes=world // local, strategy=strategy)
    fabric.launch()
    fabric.seed_everything(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    state = {"model": model, "optimizer": optimizer, "step": 0}
    if (latest := ropewalk.latest_checkpoint()) is not None:
        fabric.load(latest, state)
    while state["step"] < steps:
        generator = torch.Generator().manual_seed(state["step"] * world + fabric.global_rank)
        x = torch.randn(8, 16, generator=generator).to(fabric.device)
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        ropewalk.log({"train/loss": loss.item()}, step=state["step"], reduce="mean")
        stop = ropewalk.stop_requested()
        if stop or state["step"] % 10 == 0 or state["step"] == steps:
            path = ropewalk.checkpoint_dir() / f"step-{state['step']}.ckpt"
            fabric.save(path, state)
            ropewalk.commit_checkpoint(path, keep=3)
        if stop and state["step"] < steps:
            sys.exit(85)  # requeued: the next attempt goes on from here
    if fabric.is_global_zero:
        print(f"final {sum(p.double().sum() for p in model.parameters()).item():.17g}", flush=True)


if __name__ == "__main__":
    main()
