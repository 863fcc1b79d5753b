"""AdamW with weight decay on matrices only, and learning rates that are pure functions of the step."""

import math

import torch
from torch import nn

from jobs.training.config import OptimConfig
from sharding.state import prepare_adam


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients, with its state made; gains, biases and other vectors do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    prepare_adam(optimizer)  # so that a checkpoint has something to load into
    return optimizer


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The learning rate of the update that follows `step` completed steps."""
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
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value
