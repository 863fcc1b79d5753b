"""AdamW with weight decay on matrices only, and learning rates that are pure functions of the step."""

import math
from typing import Any

import torch
from torch import nn

from ropewalk.jobs.training.loop.config import OptimConfig
from ropewalk.sharding.fsdp import decoder_layers
from ropewalk.sharding.state import prepare_adam


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Create AdamW over the parameters that require gradients, with its state; vectors such as gains and biases do not decay."""
    groups = []
    for scale, parameters in _by_scale(model, config.layer_decay).items():
        decayed, others = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
        groups += [
            {"params": decayed, "weight_decay": config.weight_decay, "scale": scale},
            {"params": others, "weight_decay": 0.0, "scale": scale},
        ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    prepare_adam(optimizer)  # a checkpoint is loaded into existing state
    return optimizer


def _by_scale(model: nn.Module, layer_decay: float | None) -> dict[float, list[nn.Parameter]]:
    """Group the trained parameters by the factor of their learning rate: 1 for the head, smaller for each layer below."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if layer_decay is None:
        return {1.0: trained}
    layers = decoder_layers(model)
    depth = {id(p): number for number, layer in enumerate(layers, 1) for p in layer.parameters()}
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    depth.update((id(p), 0) for p in embeddings.parameters())
    top = len(layers) + 1
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in trained:
        groups.setdefault(layer_decay ** (top - depth.get(id(parameter), top)), []).append(parameter)
    return groups


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of the update after `step` completed steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    lowest = config.lr * config.min_lr_ratio
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        start, span = config.warmup_steps, num_steps - config.warmup_steps
        progress = min(1.0, (step - start) / max(1, span))
        return lowest + (config.lr - lowest) * 0.5 * (1 + math.cos(math.pi * progress))
    decay_steps = max(1, round(num_steps * config.decay_fraction))
    progress = min(1.0, max(0.0, (step - (num_steps - decay_steps)) / decay_steps))
    return config.lr - (config.lr - lowest) * progress


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("scale", 1.0)
