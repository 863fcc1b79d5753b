"""One rank of test_muon.py: the sharded optimizer against torch's own on whole matrices, with equal gradients."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.update import muon
from ropewalk.jobs.training.loop.update.optimizer import layer_matrices, make_optimizer
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.fsdp import fill
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import parallelize
from tests.jobs.launch import TINY

STEPS = 3
CONFIG = OptimConfig(name="muon", lr=1e-2)


def model_of(device: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**TINY, "num_key_value_heads": 2}, vocab_size=257)  # two tensor-parallel ranks divide it
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def whole_weights(grads: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Weights after these steps of torch's Muon and AdamW on one unsharded model."""
    model = model_of("cpu")
    matrices = layer_matrices(model)
    names = {id(matrix) for matrix in matrices}
    others = [p for p in model.parameters() if id(p) not in names]
    optimizers = [
        torch.optim.Muon(matrices, lr=CONFIG.lr, weight_decay=CONFIG.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": [p for p in others if p.dim() >= 2], "weight_decay": CONFIG.weight_decay},
                {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=CONFIG.lr,
            betas=CONFIG.betas,
            fused=True,
        ),
    ]
    for step in grads:
        for parameter, gradient in zip(model.parameters(), step, strict=True):
            parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def differences(group: Group, parallel: ParallelConfig) -> dict[str, Any]:
    """Largest difference of each weight, and the number of matrices that this rank orthogonalized."""
    model = parallelize(model_of("meta"), group, parallel, PrecisionConfig())
    fill(model, model_of("cpu") if group.is_main else None, group)
    generator = torch.Generator().manual_seed(1)
    grads = [[torch.randn(p.shape, generator=generator) for p in model.parameters()] for _ in range(STEPS)]
    optimizer = make_optimizer(model, CONFIG)
    orthogonalize, shapes = muon.orthogonalize, []

    def counted(update: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(update.shape))
        return orthogonalize(update)

    muon.orthogonalize = counted
    for step in grads:
        for parameter, gradient in zip(model.parameters(), step, strict=True):
            assert isinstance(parameter, DTensor)
            parameter.grad = distribute_tensor(gradient, parameter.device_mesh, parameter.placements, src_data_rank=None)
        optimizer.step()
        optimizer.zero_grad()
    muon.orthogonalize = orthogonalize
    whole = whole_weights(grads)
    worst = {
        name: float((parameter.detach().full_tensor() - whole[name]).abs().max())  # type: ignore[operator]
        for name, parameter in model.named_parameters()
    }
    return {"worst": worst, "orthogonalized": len(shapes), "matrices": len(layer_matrices(model))}


def muon_main(rank: int, size: int, port: int, parallel: ParallelConfig, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    with process_group(parallel) as group:
        (folder / f"{rank}.json").write_text(json.dumps(differences(group, parallel)))
