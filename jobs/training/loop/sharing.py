"""Layers that share their weights, in groups of neighbours: configuration, sharing, and reversal.

A shared model is trained, sharded and checkpointed with each group's weights once. Opening it gives the plain model of
transformers, whose layers of a group are equal: nothing else needs to know. `layer_sharing` of a configuration holds the
groups and their initial values: the `first` layer, or the `mean` of the group.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ropewalk.cluster.errors import ConfigError

KEY = "layer_sharing"


def set_groups(config: Any, num_groups: int, values: str = "first") -> None:
    """Divide the layers into groups of neighbours, of nearly equal size, that share weights. Raises ConfigError for too many."""
    layers = int(config.num_hidden_layers)
    if num_groups > layers:
        raise ConfigError(f"share.groups: {num_groups} groups of {layers} layers are not possible; choose at most {layers}")
    bounds = [layers * number // num_groups for number in range(num_groups + 1)]
    setattr(config, KEY, {"groups": [list(range(*pair)) for pair in pairwise(bounds)], "values": values})


def shared_groups(config: Any) -> list[list[int]]:
    """Return the groups of layers that share weights; none if each layer has its own."""
    sharing = getattr(config, KEY, None)
    return [list(group) for group in sharing["groups"]] if sharing else []


@torch.no_grad()
def share_layers(model: Any, config: Any) -> Any:
    """Make the layers of a model share the weights of their group, in place; a model without groups is unchanged."""
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
    """Give each layer its own copy of its group's weights, in place: the plain model of transformers."""
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
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        kind = getattr(model.config, "model_type", type(model).__name__)
        raise ConfigError(
            f"share: layers of the architecture {kind!r} cannot share weights; only Llama-like models are supported"
        )
    return layers


def _set(layer: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(owner), attribute, parameter)
