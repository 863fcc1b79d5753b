"""Tensor parallelism by transformers' own plans: matrices of layers, embedding and head divided over the ranks of a node.

A rank holds some heads and some columns of each layer, and some rows (tokens) of the embedding and of the head. The ranks of one
tensor group compute the same samples. The head's logits stay divided where a loss can be computed so.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES, replace_layer_number_by_wildcard
from transformers.distributed.tensor_parallel import ColwiseParallel, apply_tensor_parallelism

from ropewalk.cluster.errors import ConfigError
from ropewalk.sharding.config import ParallelConfig
from ropewalk.sharding.divided_adapters import SUMMED, adapter_problem, divide_adapters
from ropewalk.sharding.fsdp import decoder_layers
from ropewalk.sharding.group import Group
from ropewalk.sharding.sequence_parallel import (
    EXPERT_ROWS,
    EXPERTS,
    LOCAL,
    WHOLE_EXPERTS,
    divide_sequences,
    sequence_plan,
    sequence_problem,
)
from ropewalk.sharding.ties import tie, ties

log = logging.getLogger(__name__)

_EMBEDDING = "embedding_rowwise"
_HEAD = "vocabulary_shards"

# names of whole parameters of which each rank has only a part of the gradient
_PARTIAL: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()


class _VocabularyShards(ColwiseParallel):  # type: ignore[misc]
    """A head whose logits are gathered, unless the caller asks for this rank's columns."""

    divided = False

    def __init__(self) -> None:
        super().__init__(output_layouts=Shard(-1), use_local_output=False)

    def transform_output_post_forward(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> torch.Tensor:
        logits: DTensor = super().transform_output_post_forward(module, output, mesh)
        return logits if self.divided else whole(logits)


_HEAD_STYLE = _VocabularyShards()
ALL_PARALLEL_STYLES.register(_HEAD, _HEAD_STYLE)


@contextmanager
def divided_logits() -> Iterator[None]:
    """Let models return logits as a DTensor, divided over the vocabulary, where the head is divided."""
    before, _HEAD_STYLE.divided = _HEAD_STYLE.divided, True
    try:
        yield
    finally:
        _HEAD_STYLE.divided = before


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with all its columns, which every rank of a tensor group uses in the same way."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def apply_tensor_plan(model: Any, group: Group, parallel: ParallelConfig) -> None:
    """Divide a model on the meta device over the tensor axis, in place. Raises ConfigError if it cannot be divided."""
    mesh = group.tensor_mesh
    if mesh is None:
        return
    if (problem := tensor_problem(model, parallel)) is not None:
        raise ConfigError(problem)
    tied, obstacle = ties(model), whole_sequences_reason(model, parallel)
    plan = _plan_of(model, tied, parallel)
    for first, *others in tied:  # a plan divides each name once
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, nn.Parameter(torch.empty_like(model.get_parameter(first))))
    if obstacle is None:
        layers = _named_layers(model)
        divide_sequences(layers, plan, mesh)
        plan = sequence_plan(layers, plan)
    elif group.is_main:
        log.warning("activations between the divided blocks of layers are kept whole on each rank: %s", obstacle)
    apply_tensor_parallelism(model, mesh, {name: style for name, style in plan.items() if style != SUMMED})
    tie(model, tied)
    _PARTIAL[model] = [name for name, p in model.named_parameters() if plan.get(name) == SUMMED and p.requires_grad]


def tensor_problem(model: Any, parallel: ParallelConfig) -> str | None:
    """Return the reason why a model, which may be on the meta device, cannot be divided so; None: it can."""
    family, plan = f"models of type {model.config.model_type!r}", _plan_of(model, ties(model), parallel)
    degree = parallel.tensor
    if not getattr(model, "tp_plan", None):
        return f"parallel.tensor: transformers has no plan to divide {family}; remove parallel.tensor, or choose another model"
    if (problem := adapter_problem(model, plan)) is not None:
        return problem
    if parallel.expert > 1 and WHOLE_EXPERTS not in plan.values():
        return f"parallel.expert: transformers has no plan to divide experts of {family}; remove parallel.expert"
    if parallel.compile and EXPERTS in plan.values():  # torch: as_strided not supported with DTensor
        return "parallel.compile: experts that parallel.tensor divides cannot be compiled; remove one of the two keys"
    values = model.config.get_text_config().to_dict()
    if any(style in {"colwise", LOCAL["colwise"]} and "att" in name for name, style in plan.items()):
        for key in (key for key in values if key.endswith("heads")):
            counts = values[key] if isinstance(values[key], list) else [values[key]]
            if uneven := [count for count in counts if isinstance(count, int) and count % degree]:
                return f"parallel.tensor: {degree} does not divide the model's {uneven[0]} {key}; choose a divisor"
    for name, parameter in model.named_parameters():
        dim, blocks = _divided_dim(plan.get(name, ""), parameter)
        size = parameter.shape[dim] if dim is not None else 0
        if plan.get(name) in {_HEAD, _EMBEDDING}:  # the last part may be shorter, but not empty
            if -(-size // degree) * (degree - 1) >= size:
                return f"parallel.tensor: {size} tokens of the vocabulary are too few for {degree} ranks; lower it"
        elif size % (degree * blocks):
            key = "expert" if plan[name] == EXPERT_ROWS else "tensor"
            return f"parallel.{key}: {degree} does not divide {name}, whose shape is {list(parameter.shape)}; choose a divisor"
    return None


def whole_sequences_reason(model: Any, parallel: ParallelConfig) -> str | None:
    """Return the reason why ranks keep whole sequences between the blocks of a model; None: they divide them."""
    for key, value in model.config.get_text_config().to_dict().items():
        if ("dropout" in key or key.endswith("pdrop")) and not key.startswith("att") and value:
            return f"its configuration sets {key}, and ranks must drop the same"
    return sequence_problem(_named_layers(model), _plan_of(model, ties(model), parallel))


def _named_layers(model: Any) -> dict[str, nn.Module]:
    """Return decoder layers by name."""
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(layer)]: layer for layer in decoder_layers(model)}


def _divided_dim(style: str, parameter: torch.Tensor) -> tuple[int | None, int]:
    """Return the dim that a style divides, and the number of blocks that are divided one by one; None: none."""
    if style == EXPERT_ROWS:
        return 0, 1
    blocks = 2 if style.startswith("packed_") else 1
    if style.removeprefix("packed_").removeprefix("local_").startswith("colwise") or style in {_HEAD, _EMBEDDING}:
        return max(parameter.dim() - 2, 0), blocks
    if "rowwise" in style and parameter.dim() > 1:
        return parameter.dim() - 1, blocks
    return None, blocks


def _plan_of(model: Any, tied: list[list[str]], parallel: ParallelConfig) -> dict[str, str]:
    """Return the styles by which modules and parameters are divided."""
    plan = dict(getattr(model, "tp_plan", None) or {})
    if parallel.expert > 1:
        experts = dict(getattr(model, "ep_plan", None) or {})
        plan = {name: style for name, style in plan.items() if not f"{name}.".startswith(tuple(f"{key}." for key in experts))}
        plan |= {name: WHOLE_EXPERTS if style == "ep_dispatch_experts" else style for name, style in experts.items()}
    return divide_adapters(model, _expanded(model, plan) | _vocabulary_plan(model, tied))


def _expanded(model: nn.Module, plan: dict[str, str]) -> dict[str, str]:
    """Return the styles of modules and of their parameters by full name; a module's parameters come before it."""
    result = {}
    for name, module in model.named_modules():
        style = plan.get(replace_layer_number_by_wildcard(name))
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            style = LOCAL.get(style or "", style)
        for parameter, _ in module.named_parameters(recurse=False):
            full = f"{name}.{parameter}" if name else parameter
            of_parameter = plan.get(replace_layer_number_by_wildcard(full), style)
            if of_parameter is not None:
                result[full] = of_parameter
        if style is not None:
            result[name] = style
    return result


def _vocabulary_plan(model: Any, tied: list[list[str]]) -> dict[str, str]:
    """Return the plan of the head, and of the embedding if that has the same matrix: both are divided by tokens."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return {}
    names = {id(module): name for name, module in model.named_modules()}
    embedding = model.get_input_embeddings()
    result = {f"{names[id(head)]}.{parameter}": _HEAD for parameter, _ in head.named_parameters()} | {names[id(head)]: _HEAD}
    if any({f"{names[id(head)]}.weight", f"{names[id(embedding)]}.weight"} <= set(group) for group in tied):
        result |= {f"{names[id(embedding)]}.weight": _EMBEDDING, names[id(embedding)]: _EMBEDDING}
    return result


@torch.no_grad()
def sum_partial_gradients(model: nn.Module, group: Group) -> None:
    """Complete the gradients of whole parameters that see only a part of the work on each rank; once a step, after backward."""
    names = _PARTIAL.get(model)
    if not names or group.tensor_mesh is None:
        return
    gradients = [model.get_parameter(name).grad for name in names]
    parts = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat, group=group.tensor_mesh.get_group())
    for part, total in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))
