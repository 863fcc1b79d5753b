"""Layers that share their weights, in groups of neighbours: a configuration's word for it, the model with them, and back.

A shared model is trained, sharded and checkpointed with each group's weights once. Whoever opens it gets the plain model of
transformers, whose layers of a group are equal: nothing else needs to know. `layer_sharing` of a configuration says which layers
belong together, and what a group begins with: its `first` layer, or the `mean` of its layers.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ropewalk.cluster.errors import ConfigError

KEY = "layer_sharing"


def set_groups(config: Any, num_groups: int, values: str = "first") -> None:
    """Let the layers of a configuration share weights in so many groups of neighbours, as equal as they can be.

    Raises ConfigError for more groups than layers.
    """
    layers = int(config.num_hidden_layers)
    if num_groups > layers:
        raise ConfigError(f"share.groups: {num_groups} groups of {layers} layers cannot be; choose at most {layers}")
    bounds = [layers * number // num_groups for number in range(num_groups + 1)]
    setattr(config, KEY, {"groups": [list(range(*pair)) for pair in pairwise(bounds)], "values": values})


def shared_groups(config: Any) -> list[list[int]]:
    """The layers that belong together; none where each has weights of its own."""
    found = getattr(config, KEY, None)
    return [list(group) for group in found["groups"]] if found else []


@torch.no_grad()
def share_layers(model: Any, config: Any) -> Any:
    """Let the layers of a model have the weights of their group, in place; a model without groups stays as it is."""
    groups = shared_groups(config)
    if not groups:
        return model
    layers = _layers(model)
    mean = getattr(config, KEY)["values"] == "mean"
    for first, *others in groups:
        for name, parameter in list(layers[first].named_parameters()):
            if mean:
                values = [layers[other].get_parameter(name) for other in others]
                parameter.copy_(torch.stack([parameter, *values]).mean(0))
            for other in others:
                _set(layers[other], name, parameter)
    setattr(model.config, KEY, getattr(config, KEY))
    return model


def unshare_layers(model: Any) -> Any:
    """Give each layer weights of its own again, equal to those of its group, in place: the plain model of transformers."""
    groups = shared_groups(model.config)
    if not groups:
        return model
    layers = _layers(model)
    for first, *others in groups:
        for name, parameter in list(layers[first].named_parameters()):
            for other in others:
                copy = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
                _set(layers[other], name, copy)
    delattr(model.config, KEY)
    return model


def _layers(model: Any) -> Any:
    found = getattr(getattr(model, "model", None), "layers", None)
    if found is None:
        kind = getattr(model.config, "model_type", type(model).__name__)
        raise ConfigError(f"share: layers of the architecture {kind!r} cannot share weights, only those of Llama-like models can")
    return found


def _set(layer: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(owner), attribute, parameter)
