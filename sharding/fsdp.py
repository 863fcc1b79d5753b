"""Shard a Hugging Face model over the ranks with FSDP2, and fill it with values that do not depend on the number of ranks."""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ropewalk.sharding.config import ParallelConfig
from ropewalk.sharding.group import Group
from ropewalk.sharding.placement import local_pieces
from ropewalk.sharding.ties import tie, ties

_SMALL_BYTES = 2 << 30  # limit of unsharded parameters or gradients on a rank
_GRADIENT_BYTES = 4  # gradients are reduced in fp32


def shard(model: nn.Module, group: Group, parallel: ParallelConfig, policy: MixedPrecisionPolicy) -> nn.Module:
    """Shard a model in place with `fully_shard`; its parameters, on the meta device, are undefined until they are set.

    Each decoder layer is one FSDP module (layers that share weights form one together), and so is an embedding that is neither
    small nor tied; the rest (norm, head) is another, which keeps tied weights tied. Gradients are summed over ranks, not
    averaged. Buffers with values keep them.
    """
    tied, mesh = ties(model), group.data_mesh
    buffers = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_meta}
    reshard = should_reshard_after_forward(model, parallel, group.device)
    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    groups = _group_by_weights(decoder_layers(model))
    for layers in groups:
        fully_shard(layers, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    if all(len(layers) == 1 for layers in groups):
        _prefetch_next([layers[0] for layers in groups], frozen=frozen)
    if reshard:
        _shard_vocabulary(model, group, policy, frozen=frozen)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)  # in place
    model.to_empty(device=group.device)
    tie(model, tied)  # to_empty separates tied tensors
    for name, buffer in buffers.items():  # the rotary embedding's for example, which no checkpoint holds
        model.get_buffer(name).copy_(buffer)
    for module in fsdp_modules(model):
        # sums, since the step divides by the global weight: ranks may have different numbers of tokens
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)
    return model


def _prefetch_next(layers: list[Any], *, frozen: bool) -> None:
    """Gather the parameters of the next layer while one computes, even if the host is late to start that layer.

    FSDP's own prefetch keeps the buffer of a gather until the next one is complete, that of the last layer beside the head's.
    """
    for first, second in pairwise(layers):
        if frozen:
            first.register_forward_pre_hook(partial(_gather, second))
        else:
            first.set_modules_to_forward_prefetch([second])
            second.set_modules_to_backward_prefetch([first])


def _gather(layer: FSDPModule, *_: Any) -> None:
    layer.unshard(async_op=True)  # then its buffer is freed as soon as the parameters are copied from it


def _shard_vocabulary(model: Any, group: Group, policy: MixedPrecisionPolicy, *, frozen: bool) -> None:
    """Make an untied embedding an FSDP module of its own, so that it is not gathered together with the head.

    The head is another one in a frozen model. A trained head stays with the model itself: its gradient is computed chunk by
    chunk in the forward pass, where FSDP's hooks of a module of its own would reduce it once a chunk.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = {id(model.get_parameter(name)) for names in ties(model) for name in names}
    if head is None or any(id(parameter) in tied for parameter in embedding.parameters()):
        return
    fully_shard(embedding, mesh=group.data_mesh, mp_policy=policy, reshard_after_forward=True)
    if frozen:
        fully_shard(
            head, mesh=group.data_mesh, mp_policy=policy, reshard_after_forward=False
        )  # may be called once a chunk of tokens
        head.register_forward_pre_hook(partial(_gather, head), prepend=True)
        model.register_forward_hook(lambda *_: head.reshard())


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model: the classes in its `_no_split_modules`, else its longest ModuleList."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [m for m in model.modules() if type(m).__name__ in names and not isinstance(m, nn.Embedding)]
    if layers:
        return layers
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _group_by_weights(layers: list[nn.Module]) -> list[list[nn.Module]]:
    """Group layers that have the same weights."""
    groups: dict[int, list[nn.Module]] = {}
    for layer in layers:
        first = next(layer.parameters(), None)
        groups.setdefault(id(layer) if first is None else id(first), []).append(layer)
    return list(groups.values())


def should_reshard_after_forward(model: nn.Module, parallel: ParallelConfig, device: torch.device) -> bool:
    """Return True if gathered parameters are freed between forward and backward."""
    if parallel.reshard == "auto":
        bytes_each = 2 if device.type == "cuda" else 4
        return sum(p.numel() for p in model.parameters()) * bytes_each > _SMALL_BYTES
    return parallel.reshard == "always"


def accumulates_sharded(model: nn.Module, parallel: ParallelConfig) -> bool:
    """Return True if each micro-batch's gradients are reduced at once; else each rank holds the full fp32 gradient meanwhile."""
    if parallel.accumulate == "auto":
        return sum(p.numel() for p in model.parameters() if p.requires_grad) * _GRADIENT_BYTES > _SMALL_BYTES
    return parallel.accumulate == "sharded"


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    """Return the modules whose parameters are gathered, and whose gradients are reduced, in one collective."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def set_micro_batch(modules: list[FSDPModule], *, last: bool, reshard: bool, sharded: bool) -> None:
    """Prepare the modules for a micro-batch of a step.

    Only the last one reduces gradients, unless they are accumulated sharded, and only the last one sums them over the copies
    of the model; only the first one gathers parameters, unless they are resharded after forward.
    """
    for module in modules:
        module.set_requires_gradient_sync(last or sharded, recurse=False)
        module.set_requires_all_reduce(last, recurse=False)
        module.set_reshard_after_backward(last or reshard, recurse=False)


def reshard_all(model: nn.Module) -> None:
    """Free gathered parameters. After a forward pass alone they would stay, and hide values that are loaded later."""
    for module in fsdp_modules(model):
        module.reshard()


@torch.no_grad()
def fill(model: nn.Module, source: nn.Module | None, group: Group) -> None:
    """Copy the values of rank 0's unsharded `source` to every rank's shards; `source` is None on the other ranks.

    Buffers are copied too: `to_empty` leaves garbage in those of the rotary embedding, and no checkpoint holds them: the loss
    would be finite and wrong.
    """
    assert (source is not None) == group.is_main
    values = {**dict(source.named_parameters()), **dict(source.named_buffers())} if source is not None else {}

    def full_value(name: str, like: torch.Tensor) -> torch.Tensor:
        if source is not None:
            full = values[name].detach().to(group.device, like.dtype).contiguous()
        else:
            full = torch.empty(like.shape, dtype=like.dtype, device=group.device)
        dist.broadcast(full, src=0)
        return full

    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        full = full_value(name, parameter)
        for box in local_pieces(parameter):
            parameter.to_local()[box.inside].copy_(full[box.window])
    for name, buffer in model.named_buffers():
        buffer.copy_(full_value(name, buffer))
