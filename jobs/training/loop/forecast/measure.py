"""Measurement of a model on the meta device for forecasts: its shapes by FSDP module, and its activations."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.loop.forecast.activations import Activations, measure_activations
from ropewalk.jobs.training.loop.forecast.memory import Mode, ModelShape, Unit
from ropewalk.sharding.fsdp import decoder_layers
from ropewalk.sharding.recompute import recompute_activations

_FEW, _MORE = 2, 4  # layers of which activations are measured; those of the others are extrapolated


def measure_model(model: Any, seq_len: int, modes: Sequence[Mode], *, bf16: bool, gpu: bool) -> ModelShape:
    """Measure a model on the meta device in modes of activation checkpointing; the model cannot be used afterwards."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight, text = getattr(head, "weight", None), model.config.get_text_config()
    shape = ModelShape(
        units=fsdp_units(model),
        hidden=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        vocabulary=0 if weight is None else len(weight),
        head_trained=weight is not None and weight.requires_grad,
        seq_len=seq_len,
    )
    activations, problem = {}, ""
    for mode in modes:
        try:
            if mode != "none":
                recompute_activations(model, mode)
            activations[mode] = _activations(model, seq_len, bf16=bf16, gpu=gpu)
        except (RuntimeError, ValueError, TypeError, AttributeError, ConfigError) as error:
            problem = problem or (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return shape.model_copy(update={"activations": activations, "problem": problem})


def fsdp_units(model: nn.Module) -> list[Unit]:
    """Return the modules that FSDP gathers as one: the rest of the model first, then the layers."""
    counted: set[int] = set()
    units: list[Unit] = []
    for layer in decoder_layers(model):
        parameters = [parameter for parameter in layer.parameters() if id(parameter) not in counted]
        counted.update(map(id, parameters))
        if parameters:
            units.append(_unit(parameters))
    return [_unit([parameter for parameter in model.parameters() if id(parameter) not in counted]), *units]


def _unit(parameters: list[nn.Parameter]) -> Unit:
    trained = [tuple(p.shape) for p in parameters if p.requires_grad]
    return Unit(trained=trained, frozen=[tuple(p.shape) for p in parameters if not p.requires_grad])


def _activations(model: Any, seq_len: int, *, bf16: bool, gpu: bool) -> Activations:
    """Return the bytes of one sample. Layers repeat, so a deep model is measured at two smaller depths."""
    layers = _stack(model)
    if layers is None or len(layers) <= _MORE:
        return measure_activations(model, 1, seq_len, bf16=bf16, gpu=gpu)
    results = []
    for depth in (_FEW, _MORE):
        with _cut(model, layers, depth):
            results.append(measure_activations(model, 1, seq_len, bf16=bf16, gpu=gpu))
    steps = (len(layers) - _FEW) / (_MORE - _FEW)
    return Activations(*(round(few + (more - few) * steps) for few, more in zip(*results, strict=True)))


def _stack(model: nn.Module) -> nn.ModuleList | None:
    """Return the list of a model's layers; None if they are in no list of their own."""
    layers = decoder_layers(model)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((each for each in lists if list(each) == layers), None)


@contextmanager
def _cut(model: nn.Module, layers: nn.ModuleList, depth: int) -> Iterator[None]:
    """Remove all but the first layers of a model temporarily."""
    name = next(name for name, module in model.named_modules() if module is layers)
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, layers[:depth])
    try:
        yield
    finally:
        setattr(model.get_submodule(owner), attribute, layers)
