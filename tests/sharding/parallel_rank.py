"""One rank of test_parallelize.py: a few steps of a small model, wrapped as a configuration says."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.fsdp import fill
from ropewalk.sharding.group import Group, process_group
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
        return train_in(group, parallel, precision, steps=steps)


def train_in(group: Group, parallel: ParallelConfig, precision: PrecisionConfig, *, steps: int = 3) -> list[float]:
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


class OperationCounts(TorchDispatchMode):
    """Counts calls of operations by name, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


RECOMPUTABLE = ("aten::mm", "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::silu")


def train_recomputing(replicate: int) -> dict[str, tuple[list[float], list[int]]]:
    """Each mode of activation checkpointing → losses, and how often each of RECOMPUTABLE ran."""
    results = {}
    with process_group(ParallelConfig(replicate=replicate)) as group:
        for mode in ("none", "selective", "full"):
            parallel = ParallelConfig.model_validate({"replicate": replicate, "activation_checkpointing": mode})
            with OperationCounts() as operations:
                losses = train_in(group, parallel, PrecisionConfig())
            results[mode] = losses, [operations.counts[name] for name in RECOMPUTABLE]
    return results


def recomputing_main(rank: int, size: int, port: int, replicate: int, folder: Path) -> None:
    _set_environment(rank, size, port)
    (folder / f"{rank}.json").write_text(json.dumps(train_recomputing(replicate)))


def rank_main(rank: int, size: int, port: int, parallel: dict[str, Any], folder: Path) -> None:
    _set_environment(rank, size, port)
    losses = train(ParallelConfig.model_validate(parallel), PrecisionConfig())
    (folder / f"{rank}.json").write_text(json.dumps(losses))
    assert not dist.is_initialized()


def _set_environment(rank: int, size: int, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
