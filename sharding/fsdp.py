"""Split a Hugging Face model over the ranks, with initial weights that do not depend on how many there are."""

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sharding.config import FsdpConfig
from sharding.group import Group

_SMALL_BYTES = 2 << 30  # what a rank may hold of the whole model
_GRADIENT_BYTES = 4  # fp32, in which gradients are reduced


def shard_model(skeleton: nn.Module, source: nn.Module | None, group: Group, config: FsdpConfig) -> nn.Module:
    """Split `skeleton` (on the meta device) in place and fill it from rank 0's `source` (the whole model, on CPU).

    Each decoder layer is one unit and the rest (embedding, norm, head) another, which keeps tied weights tied.
    bf16 compute with fp32 parameters and reductions on a GPU, fp32 on a CPU. Gradients are summed over ranks.
    """
    ties = _ties(skeleton)
    on_gpu = group.device.type == "cuda"
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if on_gpu else MixedPrecisionPolicy()
    reshard = reshards(skeleton, config, group.device)
    for layer in decoder_layers(skeleton):
        fully_shard(layer, mesh=group.mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(skeleton, mesh=group.mesh, mp_policy=policy, reshard_after_forward=False)  # in place
    model = skeleton
    model.to_empty(device=group.device)
    _tie(model, ties)  # to_empty gives each name a tensor of its own
    _fill(model, source, group)
    for unit in units_of(model):
        # the loss is divided by the global number of tokens, so that uneven ranks count rightly
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_gradient_divide_factor(1.0)
    return model


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: those that the model itself says must not be split, else its longest list."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [m for m in model.modules() if type(m).__name__ in names and not isinstance(m, nn.Embedding)]
    if layers:
        return layers
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])


def reshards(model: nn.Module, config: FsdpConfig, device: torch.device) -> bool:
    """Whether gathered parameters are freed between forward and backward."""
    if config.reshard == "auto":
        bytes_each = 2 if device.type == "cuda" else 4
        return sum(p.numel() for p in model.parameters()) * bytes_each > _SMALL_BYTES
    return config.reshard == "always"


def accumulates_sharded(model: nn.Module, config: FsdpConfig) -> bool:
    """Whether each micro-batch's gradients are reduced at once: else every rank holds the whole fp32 gradient between them."""
    if config.accumulate == "auto":
        return sum(p.numel() for p in model.parameters() if p.requires_grad) * _GRADIENT_BYTES > _SMALL_BYTES
    return config.accumulate == "sharded"


def units_of(model: nn.Module) -> list[FSDPModule]:
    """The parts of a model that are gathered and reduced as one."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def set_pass(units: list[FSDPModule], *, last: bool, reshard: bool, sharded: bool) -> None:
    """Before a pass of a step: unless they are accumulated sharded, gradients are reduced in the last one alone, and unless
    parameters are to be freed at once, they are gathered in the first one alone."""
    for unit in units:
        unit.set_requires_gradient_sync(last or sharded, recurse=False)
        unit.set_reshard_after_backward(last or reshard, recurse=False)


def free_gathered(model: nn.Module) -> None:
    """Free gathered parameters: after a forward pass alone they would stay, and hide what is loaded or learnt later."""
    for unit in units_of(model):
        unit.reshard()


def _ties(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one tensor."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie(model: nn.Module, ties: list[list[str]]) -> None:
    for first, *others in ties:
        parameter = model.get_parameter(first)
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, parameter)


@torch.no_grad()
def _fill(model: nn.Module, source: nn.Module | None, group: Group) -> None:
    """Copy rank 0's weights and buffers everywhere. Buffers too: `to_empty` leaves garbage in those of the rotary
    embedding, no checkpoint repairs them, and the loss would be finite and wrong."""
    assert (source is not None) == group.first
    values = {**dict(source.named_parameters()), **dict(source.named_buffers())} if source is not None else {}

    def whole(name: str, like: torch.Tensor) -> torch.Tensor:
        if source is not None:
            full = values[name].detach().to(group.device, like.dtype).contiguous()
        else:
            full = torch.empty(like.shape, dtype=like.dtype, device=group.device)
        dist.broadcast(full, src=0)
        return full

    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        full = whole(name, parameter)
        shard = distribute_tensor(full, group.mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(shard.to_local())
    for name, buffer in model.named_buffers():
        buffer.copy_(whole(name, buffer))
