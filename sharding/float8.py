"""Linear layers that compute in float8, by torchao; weights, gradients and checkpoints keep their formats.

Before each product its two matrices are rounded to e4m3: each row of the first and each column of the second has a scale, a power
of two. In the gradient of a weight a row is one feature of all tokens of a micro-batch, so its scale, and which small values
become zero, depend on micro-batch and number of ranks.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.text import counted
from ropewalk.sharding.config import FLOAT8_CAPABILITY, FLOAT8_MULTIPLE, FLOAT8_NEEDS, PrecisionConfig
from ropewalk.sharding.fsdp import decoder_layers
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)


def compute_in_float8(model: nn.Module, group: Group, precision: PrecisionConfig, *, tensor: int = 1) -> nn.Module:
    """Let linear layers compute in float8 as `precision` says, before they are divided among `tensor` ranks.

    Raises ConfigError if this device or environment cannot.
    """
    emulated = precision.float8 == "emulated"
    if not emulated and (group.device.type != "cuda" or torch.cuda.get_device_capability(group.device) < FLOAT8_CAPABILITY):
        raise ConfigError(FLOAT8_NEEDS)
    try:
        from torchao.float8 import (  # type: ignore[import-not-found]  # noqa: PLC0415 - an extra that takes seconds
            Float8LinearConfig,
            convert_to_float8_training,
        )
    except ImportError as error:
        raise ConfigError(f"precision.float8: torchao is not installed ({error}); pip install 'ropewalk[float8]'") from None
    layers = float8_layers(model, precision.float8_layers, FLOAT8_MULTIPLE * tensor)
    chosen = {id(layer) for layer in layers}
    if group.is_main:
        log.info("computing %s in float8%s", counted(len(layers), "linear layer"), ", emulated" if emulated else "")
    config = replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=emulated)
    converted: nn.Module = convert_to_float8_training(model, module_filter_fn=lambda layer, _: id(layer) in chosen, config=config)
    return converted


def float8_layers(model: nn.Module, patterns: Sequence[str], multiple: int = FLOAT8_MULTIPLE) -> list[nn.Linear]:
    """Return the linear layers of decoder layers with sizes of a `multiple` and names there that match one of the patterns.

    Raises ConfigError if there are none.
    """
    linear = [
        (name, part)
        for layer in decoder_layers(model)
        for name, part in layer.named_modules()
        if isinstance(part, nn.Linear) and part.in_features % multiple == 0 and part.out_features % multiple == 0
    ]
    if not linear:
        raise ConfigError(
            f"precision.float8: no linear layer of {type(model).__name__} has two sizes that are multiples of {multiple};"
            " remove precision.float8"
        )
    chosen = [part for name, part in linear if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        names = ", ".join(dict.fromkeys(name for name, _ in linear))
        raise ConfigError(f"precision.float8_layers: {list(patterns)} match none of {names}")
    return chosen
