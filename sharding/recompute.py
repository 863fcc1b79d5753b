"""Activation checkpointing: activations of a layer that are computed again in backward, to save memory."""

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from ropewalk.cluster.errors import ConfigError

_aten = torch.ops.aten
# outputs that `selective` keeps: products with weights and fused attention, nearly all of a layer's arithmetic
KEPT = (
    _aten.mm.default,
    _aten.addmm.default,
    _aten._grouped_mm.default,  # experts
    _aten._scaled_mm.default,  # in float8
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_fused_attention_overrideable.default,  # other accelerators
)


def recompute_activations(model: nn.Module, mode: Literal["selective", "full"]) -> None:
    """Let each layer recompute its activations, using transformers' own layers: no parameter is renamed.

    `selective` keeps the outputs of the operations in KEPT. Raises ConfigError for a model that cannot recompute.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"parallel.activation_checkpointing: {type(model).__name__} cannot recompute its activations; set it to none"
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, list(KEPT))
    # renamed in transformers 5; the old name warns there and will go
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)  # type: ignore[operator]
