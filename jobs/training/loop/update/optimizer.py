"""Optimizers (AdamW, Muon beside AdamW), weight decay on matrices only, and learning rates that are functions of the step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.update.muon import STATE, MatrixExchange, adjusted_scale, momentum_update
from ropewalk.sharding.checkpoints.state import prepare_adam
from ropewalk.sharding.fsdp import decoder_layers


def make_optimizer(model: nn.Module, config: OptimConfig, moments: torch.dtype = torch.float32) -> "Optimizer":
    """Create the optimizer over the parameters that require gradients, with its state; vectors (gains, biases) do not decay."""
    matrices, muon, decay = {id(matrix) for matrix in layer_matrices(model)}, config.name == "muon", config.weight_decay
    head, ratio = _head(model), _width_ratio(model, config.base_width)
    groups: list[dict[str, Any]] = []
    for scale, parameters in _by_scale(model, config.layer_decay).items():
        inner, vectors = [p for p in parameters if id(p) in matrices], [p for p in parameters if p.dim() < 2]
        outer = [p for p in parameters if id(p) not in matrices and p.dim() >= 2 and p is not head]
        groups += [
            {"params": inner, "weight_decay": decay, "scale": scale * (math.sqrt(ratio) if muon else ratio), "muon": muon},
            {"params": [p for p in parameters if p is head], "weight_decay": decay, "scale": scale * ratio},
            {"params": outer, "weight_decay": decay, "scale": scale},
            {"params": vectors, "weight_decay": 0.0, "scale": scale},
        ]
    groups = [group for group in groups if group["params"]]
    return Optimizer(groups, lr=config.lr, betas=config.betas, eps=config.eps, moments=moments)


def _head(model: nn.Module) -> nn.Parameter | None:
    """Return the matrix of the head, which may also be that of the input embeddings; None if an adapter wraps it."""
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return dict(head.named_parameters(recurse=False)).get("weight") if head is not None else None


def _width_ratio(model: Any, base_width: int | None) -> float:
    """Return the factor of AdamW's rate for matrices that read the hidden state; Muon's has the square root.

    Adam changes each weight by about its rate, so that a sum over the width changes by rate · width (Yang et al. 2022, table 8;
    Everett et al. 2024). Muon's update, scaled to the size of Adam's, has a norm that grows with the square root of the width.
    """
    return 1.0 if base_width is None else base_width / int(model.config.get_text_config().hidden_size)


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained matrices of the layers, which Muon updates: no embedding, head, norm or vector."""
    modules = (module for layer in decoder_layers(model) for module in layer.modules() if not isinstance(module, nn.Embedding))
    parameters = (parameter for module in modules for parameter in module.parameters(recurse=False))
    return list({id(p): p for p in parameters if p.dim() == 2 and p.requires_grad}.values())


class Optimizer(torch.optim.AdamW):
    """AdamW, but Muon for the groups marked `muon`. All state exists from the start, since a checkpoint is loaded into it."""

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, moments: torch.dtype
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        matrices = [parameter for group in self.param_groups if group.get("muon") for parameter in group["params"]]
        for matrix in matrices:
            self.state[matrix] = {STATE: torch.zeros_like(matrix, dtype=moments)}
        prepare_adam(self, moments)
        self._rounded = moments.itemsize < 4
        self._exchange = MatrixExchange(matrices) if matrices else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, applied: torch.Tensor | None = None) -> None:  # type: ignore[override]
        """Update all parameters; gradients of Muon's matrices are freed.

        `applied`, a tensor without dimensions, is 1, or 0 to leave parameters and state as they are, whatever the gradients.
        """
        assert closure is None
        if applied is None:
            applied = torch.ones((), device=self.param_groups[0]["params"][0].device)
        if self._exchange is not None:
            self._step_matrices(self._exchange, applied.double())
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            size = 1 if self._rounded else max(1, len(parameters))  # one parameter at a time has moments in fp32
            for start in range(0, len(parameters), size):
                self._step_adam(group, parameters[start : start + size], 1 - applied.float())

    def _step_adam(self, group: dict[str, Any], parameters: list[nn.Parameter], skipped: torch.Tensor) -> None:
        """Take AdamW's step, in fp32 with moments rounded afterwards; on the shards, where DTensors would dispatch each."""
        beta1, beta2 = group["betas"]
        options = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize", "fused")}
        states = [self.state[parameter] for parameter in parameters]
        stored = [[_local(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq")]
        means, squares = ([moment.float() if self._rounded else moment for moment in moments] for moments in stored)
        weights, gradients = [_local(p) for p in parameters], [_local(p.grad) for p in parameters]
        steps = [state["step"] for state in states]
        adamw(weights, gradients, means, squares, [], steps, found_inf=skipped, beta1=beta1, beta2=beta2, **options)
        if self._rounded:
            torch._foreach_copy_([*stored[0], *stored[1]], [*means, *squares])

    def _step_matrices(self, exchange: MatrixExchange, applied: torch.Tensor) -> None:
        group_of = {id(parameter): group for group in self.param_groups for parameter in group["params"]}
        for matrices in exchange.rounds():
            updates = [momentum_update(_local(m.grad), _local(self.state[m][STATE]), applied) for m in matrices]
            for matrix, update in zip(matrices, exchange.orthogonal(matrices, updates), strict=True):
                group, rows = group_of[id(matrix)], _local(matrix)
                rows.mul_((1 - applied * (group["lr"] * group["weight_decay"])).to(rows.dtype))
                rows.add_(update.mul_(applied), alpha=-group["lr"] * adjusted_scale(matrix.shape))
                matrix.grad = None  # so that AdamW leaves it out


def _local(tensor: torch.Tensor | None) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


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
    if config.schedule in {"cosine", "linear"}:
        start, span = config.warmup_steps, num_steps - config.warmup_steps
        progress = min(1.0, (step - start) / max(1, span))
        left = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return lowest + (config.lr - lowest) * left
    decay_steps = max(1, round(num_steps * config.decay_fraction))
    progress = min(1.0, max(0.0, (step - (num_steps - decay_steps)) / decay_steps))
    return config.lr - (config.lr - lowest) * progress


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("scale", 1.0)
