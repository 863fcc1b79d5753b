"""Iterate over the layers of a decoder, each with the outputs of the layers before it in their current state."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn


class _CaughtError(Exception):
    """Raised when the first layer is reached: the rest of the model is not computed."""


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the matrices of a module by name."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            yield name, part


@torch.no_grad()
def layer_by_layer(model: Any, batches: Iterable[torch.Tensor]) -> Iterator[tuple[str, nn.Module, Callable[[], None]]]:
    """Yield each layer's name, the layer, and a function that computes it for the whole text; token ids [B, T].

    The caller may change a layer before it asks for the next one, which then gets the outputs of the changed layer.
    """
    inputs = _first_inputs(model, batches)

    def compute() -> None:
        for hidden, more in inputs:
            layer(hidden, **more)

    for number, layer in enumerate(model.model.layers):
        yield f"model.layers.{number}", layer, compute
        inputs[:] = [(_hidden(layer(hidden, **more)), more) for hidden, more in inputs]


def _first_inputs(model: Any, batches: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Return the inputs of the first layer for each batch; other arguments (positions, masks) are the same for all layers."""
    caught: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def catch(module: nn.Module, inputs: tuple[Any, ...], more: dict[str, Any]) -> None:
        hidden = inputs[0] if inputs else more["hidden_states"]
        caught.append((hidden, {key: value for key, value in more.items() if key not in {"hidden_states", "past_key_values"}}))
        raise _CaughtError

    handle = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for input_ids in batches:
            try:
                model(input_ids=input_ids, use_cache=False)
            except _CaughtError:
                continue
    finally:
        handle.remove()
    return caught


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
