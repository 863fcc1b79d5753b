"""A plain script of two ranks over gloo that writes down when each step ended, and goes on from its last one."""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    log_file, pause, steps = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    saved = log_file.with_suffix(".pt")
    first = 0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        first = int(state["step"])
    for step in range(first + 1, steps + 1):
        model(torch.randn(8, 16)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(pause)
        dist.barrier()
        if dist.get_rank() == 0:
            torch.save({"model": model.state_dict(), "step": step}, saved.with_suffix(".new"))
            os.replace(saved.with_suffix(".new"), saved)
            with log_file.open("a") as stream:
                stream.write(json.dumps({"step": step, "time": time.time()}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
