"""Layers that share their weights, in groups of neighbours: their configuration, and the sharing.

A shared model is trained, sharded and checkpointed with each group's weights once. Opening it gives the plain model of
transformers, whose layers of a group are equal: nothing else needs to know. `layer_sharing` of a configuration holds the
groups and their initial values: the `first` layer, or the `mean` of the group.
"""

import copy
from itertools import pairwise
from typing import Any

from torch import nn

from ropewalk.cluster.errors import ConfigError

KEY = "layer_sharing"
LAYERS = "model.layers."  # start of the names of the layers' parameters


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


def sharing_values(config: Any) -> str:
    """Return where the values of a group come from: its `first` layer, or the `mean` of all."""
    return str(getattr(config, KEY)["values"])


def plain_config(config: Any) -> Any:
    """Return the configuration of the same model whose layers have their own weights each."""
    plain = copy.deepcopy(config)
    if hasattr(plain, KEY):
        delattr(plain, KEY)
    return plain


def share_layers(model: Any, config: Any) -> Any:
    """Give the layers of each group the weights of its first layer, in place; a model without groups is unchanged."""
    groups = shared_groups(config)
    if not groups:
        return model
    layers = _layers(model)
    for first, *others in groups:
        for name, parameter in list(layers[first].named_parameters()):
            for other in others:
                _set(layers[other], name, parameter)
    setattr(model.config, KEY, getattr(config, KEY))
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
