"""Sequence parallelism: between the divided blocks of layers each rank of a tensor group holds a part of each sequence.

A block (attention, feed-forward) gathers whole sequences and leaves partial sums, which are reduced and scattered. Norms and
residuals between blocks work on parts. Embedding, masks, positions and head have whole sequences.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
from transformers.distributed.tensor_parallel import ColwiseParallel, MoeExpertsParallel, RowwiseParallel, TensorParallelLayer

from ropewalk.sharding.divided_adapters import ADAPTED_ROWS, STYLES, SUMMED

# B samples, T tokens a sample, D hidden size

_TOKENS = Shard(1)  # of [B, T, D]
EXPERTS, WHOLE_EXPERTS, _ROUTER = "moe_tp_experts", "whole_experts", "router"
EXPERT_ROWS = "grouped_gemm"  # transformers' style of matrices of whole experts: divided by their first dim
_ROWWISE = {"rowwise": Shard(-1), "rowwise_split_input": Replicate(), "rowwise_rep": Replicate()}  # placement of the input
# of linear layers that compute with parts themselves, such as those in float8
LOCAL = {"colwise": "local_colwise", "rowwise": "local_rowwise"}
_PARTIAL = {name: f"{name}_partial" for name in (*_ROWWISE, LOCAL["rowwise"], EXPERTS, WHOLE_EXPERTS, ADAPTED_ROWS)}
_OTHERS = {
    "colwise",
    "colwise_gather_output",
    "colwise_rep",
    "packed_colwise",
    EXPERT_ROWS,
    SUMMED,
    _ROUTER,
    LOCAL["colwise"],
} | STYLES


class _PartialExperts(MoeExpertsParallel):  # type: ignore[misc]
    """Experts that get a DTensor and leave partial sums."""

    def transform_inputs_pre_forward(self, module: nn.Module, args: Any, kwargs: Any, mesh: DeviceMesh) -> Any:
        hidden, index, weights, *others = args
        weights = DTensor.from_local(weights, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])
        return (hidden.to_local(grad_placements=[Partial()]), index, weights, *others), kwargs

    def transform_output_post_forward(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
        return DTensor.from_local(output, mesh, [Partial()], run_check=False)


class _Assigned(MoeExpertsParallel):  # type: ignore[misc]
    """Experts of which each rank has some, whole: it leaves out what is routed to others, and sums are reduced over ranks."""

    def transform_inputs_pre_forward(self, module: nn.Module, args: Any, kwargs: Any, mesh: DeviceMesh) -> Any:
        (hidden, index, weights, *others), kwargs = super().transform_inputs_pre_forward(module, args, kwargs, mesh)
        num_experts = cast(int, module.num_experts)  # of this rank; transformers skips the index beyond them
        elsewhere = index // num_experts != mesh.get_local_rank()
        mine = torch.where(elsewhere, num_experts, index % num_experts)
        # one row always runs, maybe with weight 0: a rank without rows would take part in no collective of backward
        mine[:1, :1] = index[:1, :1] % num_experts
        return (hidden, mine, weights.masked_fill(elsewhere, 0.0), *others), kwargs


class _PartialAssigned(_Assigned, _PartialExperts):
    pass


class _Router(TensorParallelLayer):  # type: ignore[misc]
    """A router of experts, which every rank computes for all tokens."""

    def transform_inputs_pre_forward(self, module: nn.Module, args: Any, kwargs: Any, mesh: DeviceMesh) -> Any:
        return (args[0].to_local(), *args[1:]), kwargs


class _LocalColumns(ColwiseParallel):  # type: ignore[misc]
    def should_use_local_tensors(self, module: nn.Module) -> bool:
        return True


class _LocalRows(RowwiseParallel):  # type: ignore[misc]
    def should_use_local_tensors(self, module: nn.Module) -> bool:
        return True


ALL_PARALLEL_STYLES.register(LOCAL["colwise"], _LocalColumns())
ALL_PARALLEL_STYLES.register(LOCAL["rowwise"], _LocalRows())
ALL_PARALLEL_STYLES.register(_PARTIAL[LOCAL["rowwise"]], _LocalRows(output_layouts=Partial(), use_local_output=False))
for _name, _layout in _ROWWISE.items():
    _style = RowwiseParallel(input_layouts=_layout, output_layouts=Partial(), use_local_output=False)
    ALL_PARALLEL_STYLES.register(_PARTIAL[_name], _style)
ALL_PARALLEL_STYLES.register(_PARTIAL[EXPERTS], _PartialExperts())
ALL_PARALLEL_STYLES.register(WHOLE_EXPERTS, _Assigned())
ALL_PARALLEL_STYLES.register(_PARTIAL[WHOLE_EXPERTS], _PartialAssigned())
ALL_PARALLEL_STYLES.register(_PARTIAL[ADAPTED_ROWS], TensorParallelLayer())
ALL_PARALLEL_STYLES.register(_ROUTER, _Router())


class _Sequences:
    """Hidden states of whole sequences, and this rank's parts of them."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.num_tokens = mesh, 0  # of a sequence in the newest forward pass

    def split(self, whole_BTD: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of hidden states that all ranks have."""
        self.num_tokens = whole_BTD.shape[1]
        return self.scatter(DTensor.from_local(whole_BTD, self.mesh, [Replicate()], run_check=False))

    def gather(self, part_BTD: torch.Tensor) -> DTensor:
        """Return whole sequences, which each rank may use for a part of the work."""
        size = torch.Size((part_BTD.shape[0], self.num_tokens, part_BTD.shape[2]))
        stride = (size[1] * size[2], size[2], 1)  # a part may be shorter
        parts = DTensor.from_local(part_BTD.contiguous(), self.mesh, [_TOKENS], run_check=False, shape=size, stride=stride)
        return parts.redistribute(placements=[Replicate()])

    def scatter(self, states_BTD: DTensor) -> torch.Tensor:
        """Return this rank's part of whole hidden states, or of partial ones: of their sum over ranks."""
        return states_BTD.redistribute(placements=[_TOKENS]).to_local()

    def whole(self, part_BTD: torch.Tensor) -> torch.Tensor:
        """Return whole sequences, which all ranks use in the same way."""
        return self.gather(part_BTD).to_local().clone()  # FSDP's hooks do not expect a view


def _before(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Change the hidden states that a module takes."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _after(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Change the hidden states that a module returns."""

    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    module.register_forward_hook(hook)


def divide_sequences(layers: Mapping[str, nn.Module], plan: Mapping[str, str], mesh: DeviceMesh) -> None:
    """Let each rank hold a part of the tokens between the blocks of decoder layers, which `plan` divides."""
    sequences = _Sequences(mesh)
    _before(next(iter(layers.values())), sequences.split)
    for name, layer in layers.items():
        for child in _blocks(name, layer, plan):
            _before(layer.get_submodule(child), sequences.gather)
            _after(layer.get_submodule(child), sequences.scatter)
    _after([*layers.values()][-1], sequences.whole)


def sequence_plan(layers: Mapping[str, nn.Module], plan: Mapping[str, str]) -> dict[str, str]:
    """Return the plan with blocks that leave partial sums, and with norms between them whose gradients are summed."""
    inside, between = {}, {}
    for name, layer in layers.items():
        blocks = _blocks(name, layer, plan)
        for parameter, _ in layer.named_parameters():
            if parameter.partition(".")[0] not in blocks:
                between[f"{name}.{parameter}"] = SUMMED
        for router in _routers(name, layer, plan):
            inside[router] = _ROUTER
    return {name: _PARTIAL.get(style, style) for name, style in plan.items()} | inside | between


def sequence_problem(layers: Mapping[str, nn.Module], plan: Mapping[str, str]) -> str | None:
    """Return the reason why sequences cannot be divided between the blocks of a model; None: they can."""
    if len({name.rpartition(".")[0] for name in layers}) > 1:
        return "its layers are not one stack"
    inside = tuple(f"{name}." for name in layers)
    if outside := [name for name, style in plan.items() if not name.startswith(inside) and style in {*_PARTIAL, *_OTHERS}]:
        return f"{outside[0]} is outside its layers"
    for name, layer in layers.items():
        blocks, routers = _blocks(name, layer, plan), _routers(name, layer, plan)
        for parameter, value in layer.named_parameters():
            full, block = f"{name}.{parameter}", parameter.partition(".")[0]
            if block not in blocks and value.dim() > 1:
                return f"{full} is a matrix outside of its divided blocks"
            if block in blocks and full not in plan and not full.startswith(tuple(f"{router}." for router in routers)):
                return f"{full} is a whole parameter of a divided block"
        for block in blocks:
            styles = {style for key, style in plan.items() if key == f"{name}.{block}" or key.startswith(f"{name}.{block}.")}
            if unknown := styles - {*_PARTIAL, *_OTHERS}:
                return f"{name}.{block} is divided in a way of its own ({min(unknown)})"
            if f"{name}.{block}" in plan or not styles & set(_PARTIAL):
                return f"{name}.{block} leaves no sums over the ranks"
    return None


def _blocks(name: str, layer: nn.Module, plan: Mapping[str, str]) -> list[str]:
    """Return the names of a layer's children that have divided parts."""
    return [child for child, _ in layer.named_children() if any(key.startswith(f"{name}.{child}") for key in plan)]


def _routers(name: str, layer: nn.Module, plan: Mapping[str, str]) -> list[str]:
    """Return the full names of routers: of a module without a plan beside experts, if there is one only."""
    paths = [f"{name}.{path}" for path, module in layer.named_modules() if next(module.parameters(), None) is not None]
    routers = []
    for experts in (path for path in paths if plan.get(path) in {EXPERTS, WHOLE_EXPERTS}):
        beside = experts.rpartition(".")[0]
        whole = [path for path in paths if path.rpartition(".")[0] == beside and not any(key.startswith(path) for key in plan)]
        routers += whole if len(whole) == 1 else []
    return routers
