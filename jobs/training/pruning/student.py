"""Prune a model: calibrate, choose, cut, and record the result. Weights are read and cut tensor by tensor."""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.architecture.sharing import LAYERS
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_tensors
from ropewalk.jobs.training.loop.weights.weight_reader import LoadedWeights, WeightReader
from ropewalk.jobs.training.pruning.activations import Activations, collect
from ropewalk.jobs.training.pruning.architecture import Shape
from ropewalk.jobs.training.pruning.choose import Choice, choose
from ropewalk.jobs.training.pruning.config import PruneConfig


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned model, and the record of its making."""

    model: Any  # of transformers, in evaluation mode
    reader: WeightReader  # its weights
    choice: Choice
    record: dict[str, Any]  # plain values: sizes before and after, remaining layers, scores of layers


def prune(model: Any, config: PruneConfig, batches: Iterable[torch.Tensor] = ()) -> Pruned:
    """Prune a model in memory. `batches` are token ids [B, T] of calibration text, read only if a score needs them
    (`config.needs_text`). `model` is unsharded and unchanged; the pruned one is fp32, on the CPU.

    Raises ConfigError for an unsupported architecture, and for impossible sizes.
    """
    Shape.of(model.config).cut(config)  # fail early
    activations = collect(model, batches) if config.needs_text else None
    pruned = prune_weights(model, LoadedWeights(lambda: model), config, activations)
    load_tensors(pruned.model, pruned.reader)
    return pruned


def prune_weights(model: Any, reader: WeightReader, config: PruneConfig, activations: Activations | None) -> Pruned:
    """Prune a model whose weights are read as they are needed; the result has its parameters on the meta device."""
    choice = choose(model.config, reader, config, activations)
    smaller = skeleton(smaller_config(model.config, choice)).eval()
    if model.generation_config is not None:
        smaller.generation_config = copy.deepcopy(model.generation_config)
    record = _record(model, smaller, config, choice, activations)
    return Pruned(model=smaller, reader=CutWeights(reader, choice, Shape.of(model.config).head_dim), choice=choice, record=record)


def _record(model: Any, smaller: Any, config: PruneConfig, choice: Choice, activations: Activations | None) -> dict[str, Any]:
    influence = (activations.influence / max(1, activations.tokens)).tolist() if activations is not None else None
    return {
        "kept": config.plain(),
        "layers_by": config.layers_by,
        "channels_by": config.channels_by,
        "before": {**asdict(Shape.of(model.config)), "parameters": _count(model)},
        "after": {**asdict(Shape.of(smaller.config)), "parameters": _count(smaller)},
        "layers": choice.layers,
        "block_influence": influence,
        "calibration_tokens": activations.tokens if activations is not None else 0,
    }


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def smaller_config(config: Any, choice: Choice) -> Any:
    """Return the configuration of the smaller model."""
    whole, smaller = Shape.of(config), copy.deepcopy(config)
    smaller.num_hidden_layers = len(choice.layers)
    smaller.intermediate_size = len(choice.width[0])
    smaller.num_attention_heads, smaller.num_key_value_heads = len(choice.heads[0]), len(choice.kv_heads[0])
    smaller.head_dim = whole.head_dim  # no longer the hidden size over the number of heads
    smaller.hidden_size = len(choice.hidden)
    if getattr(config, "layer_types", None):
        smaller.layer_types = [config.layer_types[number] for number in choice.layers]
    return smaller


class CutWeights:
    """A reader of the weights that a choice leaves of another reader's model, by their new names, in fp32."""

    def __init__(self, reader: WeightReader, choice: Choice, head_dim: int) -> None:
        self._reader, self._choice, self._head_dim = reader, choice, head_dim

    @property
    def in_parts(self) -> bool:
        return self._reader.in_parts

    def shape(self, name: str) -> tuple[int, ...] | None:
        old, _ = self._origin(name)
        shape = self._reader.shape(old)
        return None if shape is None else tuple(self._cut(name, torch.empty(shape, device="meta")).shape)

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        old, _ = self._origin(name)
        return self._cut(name, self._reader.read(old))[begin:end].to("cpu", torch.float32)

    def _origin(self, name: str) -> tuple[str, int | None]:
        """Return the name in the other model, and the number of its layer there."""
        if not name.startswith(LAYERS):
            return name, None
        word, _, rest = name.removeprefix(LAYERS).partition(".")
        number = self._choice.layers[int(word)]
        return f"{LAYERS}{number}.{rest}", number

    def _cut(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        _, number = self._origin(name)
        if number is None:
            return _cut_outside_layers(name, tensor, self._choice)
        return _cut_layer_tensor(name, tensor, self._choice, number, self._head_dim)


def _cut_outside_layers(name: str, tensor: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Cut the embedding, the last norm or the head: the hidden size is the last dim."""
    return tensor if name == "lm_head.bias" else tensor.index_select(-1, choice.hidden.to(tensor.device))


def _cut_layer_tensor(name: str, tensor: torch.Tensor, choice: Choice, number: int, head_dim: int) -> torch.Tensor:
    """Cut a layer's weight [out, in], bias [out] or norm."""
    part, kind = name.split(".")[-2:]
    if part in {"q_norm", "k_norm"}:  # over a head's dims, which all stay
        return tensor
    outputs: dict[str, torch.Tensor] = {
        "q_proj": _dims(choice.heads[number], head_dim),
        "k_proj": _dims(choice.kv_heads[number], head_dim),
        "v_proj": _dims(choice.kv_heads[number], head_dim),
        "gate_proj": choice.width[number],
        "up_proj": choice.width[number],
    }
    inputs = {"o_proj": _dims(choice.heads[number], head_dim), "down_proj": choice.width[number]}
    smaller = tensor.index_select(0, outputs.get(part, choice.hidden).to(tensor.device))
    if kind == "weight" and tensor.dim() == 2:
        smaller = smaller.index_select(1, inputs.get(part, choice.hidden).to(tensor.device))
    return smaller


def _dims(heads: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Return the rows of a projection that belong to these heads."""
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()
