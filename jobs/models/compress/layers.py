"""The layers of a decoder one by one, each given what those before it make of a text as they are by then."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn


class _CaughtError(Exception):
    """The first layer was reached: the rest of the model is not computed."""


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The matrices of a module by name."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            yield name, part


@torch.no_grad()
def layer_by_layer(model: Any, batches: Iterable[torch.Tensor]) -> Iterator[tuple[str, nn.Module, Callable[[], None]]]:
    """Each layer, its name, and a function that computes it for the whole text; token ids [B, T].

    The layer may be changed before the next one is asked for: that one is given what the changed layer says.
    """
    inputs = _first_inputs(model, batches)

    def compute() -> None:
        for hidden, more in inputs:
            layer(hidden, **more)

    for number, layer in enumerate(model.model.layers):
        yield f"model.layers.{number}", layer, compute
        inputs[:] = [(_hidden(layer(hidden, **more)), more) for hidden, more in inputs]


def _first_inputs(model: Any, batches: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """What the first layer is given of each batch; the rest (positions, masks) is the same for all layers."""
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
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found
