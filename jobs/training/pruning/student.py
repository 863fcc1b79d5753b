"""Prune a student from a teacher: calibrate, choose, cut, and record the result."""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from ropewalk.jobs.training.loop.architecture.sharing import LAYERS
from ropewalk.jobs.training.pruning.activations import Activations, collect
from ropewalk.jobs.training.pruning.architecture import Shape
from ropewalk.jobs.training.pruning.choose import Choice, choose
from ropewalk.jobs.training.pruning.config import PruneConfig


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned model, and the record of its making."""

    model: Any  # of transformers: fp32, on the CPU; `save_pretrained` writes it
    choice: Choice
    record: dict[str, Any]  # plain values: sizes before and after, remaining layers, scores of layers


def prune(model: Any, config: PruneConfig, batches: Iterable[torch.Tensor] = ()) -> Pruned:
    """Prune a model. `batches` are token ids [B, T] of calibration text, read only if a score needs them
    (`config.needs_text`). `model` is unsharded and unchanged.

    Raises ConfigError for an unsupported architecture, and for impossible sizes.
    """
    Shape.of(model.config).cut(config)  # fail early
    activations = collect(model, batches) if config.needs_text else None
    choice = choose(model, config, activations)
    smaller = cut(model, choice)
    return Pruned(model=smaller, choice=choice, record=_record(model, smaller, config, choice, activations))


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


@torch.no_grad()
def cut(model: Any, choice: Choice) -> Any:
    """Build the model that a choice leaves, on the CPU in fp32, in evaluation mode; `model` is unchanged."""
    with no_init_weights():
        smaller = AutoModelForCausalLM.from_config(smaller_config(model.config, choice), dtype=torch.float32)
    smaller.load_state_dict(smaller_state(model, choice))
    smaller.tie_weights()
    if model.generation_config is not None:
        smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.eval()


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


def smaller_state(model: Any, choice: Choice) -> dict[str, torch.Tensor]:
    """Return the tensors of the smaller model, by their new names."""
    state: dict[str, torch.Tensor] = {}
    new_number = {old: new for new, old in enumerate(choice.layers)}
    head_dim = Shape.of(model.config).head_dim
    for name, tensor in model.state_dict().items():
        if not name.startswith(LAYERS):
            state[name] = _cut_outside_layers(name, tensor, choice)
            continue
        word, _, rest = name.removeprefix(LAYERS).partition(".")
        if int(word) in new_number:
            state[f"{LAYERS}{new_number[int(word)]}.{rest}"] = _cut_layer_tensor(rest, tensor, choice, int(word), head_dim)
    return {name: tensor.to("cpu", torch.float32).contiguous() for name, tensor in state.items()}


def _cut_outside_layers(name: str, tensor: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Cut the embedding, the last norm or the head: the hidden size is the last dim."""
    return tensor if name == "lm_head.bias" else tensor.index_select(-1, choice.hidden.to(tensor.device))


def _cut_layer_tensor(rest: str, tensor: torch.Tensor, choice: Choice, number: int, head_dim: int) -> torch.Tensor:
    """Cut a layer's weight [out, in], bias [out] or norm."""
    part, kind = rest.split(".")[-2:]
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
