"""The order in which a model is wrapped: adapter, float8, tensor parallel, activation checkpointing, compile, FSDP."""

import logging
import os
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from ropewalk.cluster.run.files import cache_dir
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.float8 import compute_in_float8
from ropewalk.sharding.fsdp import decoder_layers, shard
from ropewalk.sharding.group import Group
from ropewalk.sharding.recompute import recompute_activations
from ropewalk.sharding.tensor_parallel import apply_tensor_plan

log = logging.getLogger(__name__)

Adapter = Callable[[nn.Module], nn.Module]


def parallelize(
    model: nn.Module,
    group: Group,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    *,
    trainable: bool = True,
    adapter: Adapter | None = None,
) -> nn.Module:
    """Divide a model on the meta device among the ranks; its values are undefined until `fill` of fsdp.py sets them.

    `adapter` is applied to the unsharded model first, for LoRA's layers for example. A model that is not `trainable` (a
    teacher, a reference) is frozen and in evaluation mode. Raises ConfigError for options that this model or version lacks.
    """
    if adapter is not None:
        model = adapter(model)
    if not trainable:
        model.requires_grad_(False).eval()
        if compute_format(precision, group.device) == "bf16":
            _keep_in_bf16(model)
    if precision.float8 is not None and trainable:
        model = compute_in_float8(model, group, precision, tensor=parallel.tensor)
    if parallel.tensor > 1:
        apply_tensor_plan(model, group, parallel)
    if parallel.activation_checkpointing != "none" and trainable:
        recompute_activations(model, parallel.activation_checkpointing)
    if parallel.compile:
        # torch's own default lies in the temporary folder, which ends with the attempt
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
        for layer in decoder_layers(model):
            layer.compile()  # in place: a wrapper would rename the parameters
    if trainable and group.is_main and group.device.type == "cuda" and compute_format(precision, group.device) == "fp32":
        log.info("computing in fp32%s", "" if precision.compute == "fp32" else ": this GPU has no native bf16")
    return shard(model, group, parallel, _mixed_precision(precision, group.device))


def _keep_in_bf16(model: nn.Module) -> None:
    """Store frozen parameters in the format of computation, which halves their memory; buffers are unchanged."""
    converted: dict[int, nn.Parameter] = {}  # by id: tied parameters stay tied
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in converted:
                converted[id(parameter)] = nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
            setattr(module, name, converted[id(parameter)])


def compute_format(precision: PrecisionConfig, device: torch.device) -> Literal["bf16", "fp32"]:
    """Return the format of forward and backward on a device: `auto` is bf16 on GPUs that support it natively, else fp32."""
    if precision.compute != "auto":
        return precision.compute
    # before Ampere torch emulates bf16, slower than fp32
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def _mixed_precision(precision: PrecisionConfig, device: torch.device) -> MixedPrecisionPolicy:
    reduced = torch.float32 if precision.reduce == "fp32" else torch.bfloat16
    if compute_format(precision, device) == "bf16":
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduced)
    return MixedPrecisionPolicy(reduce_dtype=None if precision.reduce == "fp32" else reduced)
