"""One rank of test_parallelize.py: a few steps of a small model, wrapped as a configuration says."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.fsdp import fill
from ropewalk.sharding.group import process_group
from ropewalk.sharding.parallelize import parallelize


def model_of(device: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.jobs.launch import TINY

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY, vocab_size=257), dtype=torch.float32)


def train(parallel: ParallelConfig, precision: PrecisionConfig, *, steps: int = 3) -> list[float]:
    """The losses of a few steps over the same 4 sequences, dealt to the data ranks."""
    with process_group(parallel) as group:
        model = parallelize(model_of("meta"), group, parallel, precision)
        fill(model, model_of("cpu") if group.is_main else None, group)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        tokens = torch.randint(0, 256, (4, 17), generator=torch.Generator().manual_seed(1))
        mine = tokens.chunk(group.data_size)[group.data_rank]
        losses = []
        for _ in range(steps):
            logits = model(input_ids=mine[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), mine[:, 1:].flatten(), reduction="sum") / 64
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(group.sum_over_data(loss.detach().double()).item())
        return losses


def rank_main(rank: int, size: int, port: int, parallel: dict[str, Any], folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    losses = train(ParallelConfig.model_validate(parallel), PrecisionConfig())
    (folder / f"{rank}.json").write_text(json.dumps(losses))
    assert not dist.is_initialized()
