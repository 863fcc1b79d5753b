"""Weights of a model with a low-rank adapter, read in parts: first values of the adapter, and merged ones of its layers."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ropewalk.jobs.training.loop.weights.initial_values import normal_numbers, uniform_numbers
from ropewalk.jobs.training.loop.weights.weight_reader import ChangedWeights, LoadedWeights, WeightReader

_PIECE = 1 << 18  # numbers drawn at once
_TOKENS = ("trainable_tokens_delta", "trainable_tokens_original")
_WRAPPERS = (".base_layer", ".token_adapter", ".original_module")  # that peft adds to the names of a model's own parameters


def plain_name(name: str) -> str:
    """Return the name that a parameter of an adapted model has in the model without its adapter."""
    for wrapper in _WRAPPERS:
        name = name.replace(f"{wrapper}.", ".")
    return name


class AdaptedWeights(ChangedWeights):
    """The first weights of an adapted model: those of its base, and values of the adapter that depend on the seed alone.

    They are distributed as peft does it. Each parameter has a random stream of its own.
    """

    def __init__(self, base: WeightReader, model: nn.Module, seed: int) -> None:
        """Read for a `model` with its adapter; its values are not read, only its layers."""
        super().__init__(base)
        self._model, self._seed = model, seed

    def shape(self, name: str) -> tuple[int, ...] | None:
        if any(f".{kind}." in name for kind in _TOKENS) or ".lora_" in name:
            return tuple(_tensor(self._model, name).shape)
        return super().shape(plain_name(name))

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        shape = self.shape(name)
        assert shape is not None, name
        last = shape[0] if end is None else min(end, shape[0])
        layer, _, rest = name.partition(".lora_")
        if any(f".{kind}." in name for kind in _TOKENS):
            return self._token_rows(name, begin, last)
        if not rest:
            return super().read(plain_name(name), begin, end)
        rows, width = (last - begin, *shape[1:]), torch.Size(shape[1:]).numel()
        match rest.partition(".")[0]:
            case "B" | "embedding_A":
                return torch.zeros(rows)
            case "A":
                return self._draw(name, begin * width, last * width, 1 / width**0.5).view(rows)
            case "embedding_B":
                return self._draw(name, begin * width, last * width, None).view(rows)
            case _:  # magnitude_vector
                return self._norms(layer, name)[begin:last]

    def _draw(self, name: str, begin: int, end: int, bound: float | None) -> torch.Tensor:
        """Return uniform numbers between ± `bound`, or normal ones."""
        values, key = torch.empty(end - begin), f"{self._seed}:{name}"
        for first in range(begin, end, _PIECE):
            last = min(first + _PIECE, end)
            part = values[first - begin : last - begin]
            if bound is None:
                part.copy_(normal_numbers(key, first, last))
            else:
                part.copy_(uniform_numbers(key, first, last).sub_(0.5).mul_(2 * bound))
        return values

    def _norms(self, layer: str, name: str) -> torch.Tensor:
        """Return the magnitudes of a layer of DoRA whose matrices A and B have the product 0."""
        magnitude: Any = self._model.get_submodule(name.rpartition(".")[0])
        weight = super().read(f"{plain_name(layer)}.weight").float()
        norms: torch.Tensor = magnitude.get_weight_norm(weight, torch.zeros(()), 1.0)
        return norms

    def _token_rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        kind = next(kind for kind in _TOKENS if f".{kind}." in name)
        layer, _, adapter = name.partition(f".{kind}.")
        module = self._model.get_submodule(layer)
        assert isinstance(module, TrainableTokensLayer)
        weight = f"{plain_name(f'{layer}.')}weight"
        rows = [super(AdaptedWeights, self).read(weight, row, row + 1) for row in module.token_indices[adapter][begin:end]]
        return torch.cat(rows).float() if rows else torch.empty(0, *_tensor(self._model, name).shape[1:])


@torch.no_grad()
def draw_adapter(model: nn.Module, seed: int) -> None:
    """Set the matrices of the adapter of an unsharded model to their first values."""
    reader = AdaptedWeights(LoadedWeights(lambda: model), model, seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and ".lora_magnitude" not in name:
            parameter.copy_(reader.read(name))


class MergedWeights(ChangedWeights):
    """The weights of an adapted model as a plain one: each layer's adapter is added to its base weights as peft does it."""

    def __init__(self, reader: WeightReader, adapted: nn.Module) -> None:
        """Read the values of an `adapted` model, on the meta device, by its names."""
        super().__init__(reader)
        self._layers = {plain: (name, layer, rest) for plain, name, layer, rest in _layer_parameters(adapted)}
        self._names = {plain_name(name): name for name, _ in _tensors(adapted)}

    def shape(self, name: str) -> tuple[int, ...] | None:
        return super().shape(self._names.get(name, name))

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        if name not in self._layers:
            return super().read(self._names.get(name, name), begin, end)
        layer_name, layer, rest = self._layers[name]
        whole: Any = copy.deepcopy(layer).to_empty(device="cpu").requires_grad_(False)
        for inner, tensor in _tensors(whole):
            tensor.copy_(super().read(f"{layer_name}.{inner}"))
        whole.merge()
        merged: torch.Tensor = whole.get_base_layer().get_parameter(rest).detach()
        return merged[begin:end]


def _layer_parameters(adapted: nn.Module) -> Iterator[tuple[str, str, nn.Module, str]]:
    """Yield the plain name of each base parameter in an adapted layer, the layer's name and module, and the rest of the name."""
    for name, layer in adapted.named_modules():
        if isinstance(layer, BaseTunerLayer):
            for rest, _ in layer.get_base_layer().named_parameters(recurse=False):
                yield f"{plain_name(f'{name}.')}{rest}", name, layer, rest


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    owner, _, attribute = name.rpartition(".")
    tensor: torch.Tensor = getattr(module.get_submodule(owner), attribute)
    return tensor
