"""Low-rank adapters: insert peft's layers before sharding, switch them off, merge them, save them in peft's format."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.loop.architecture.model_record import Head
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.weights.adapter_weights import draw_adapter
from ropewalk.jobs.training.loop.weights.weight_reader import WeightReader
from ropewalk.sharding.parallelize import Adapter

_NAME = "default"  # peft's default name of an adapter
# part of the names of all parameters that peft adds: lora_A, lora_B, lora_magnitude_vector, embeddings of added tokens
_MARK = ("lora_", "trainable_tokens_delta")


def lora_adapter(config: LoraConfig, seed: int, added_tokens: Sequence[int] = ()) -> Adapter:
    """Return a function that inserts the adapter into a model in place and freezes the rest; initial values depend on the seed.

    The embeddings of added tokens are trained too, and their rows of an untied head. Raises ConfigError if the model has no
    such layers.
    """

    def adapt(model: nn.Module) -> nn.Module:
        on_meta = any(parameter.is_meta for parameter in model.parameters())
        try:
            options = peft_config(config, _rows_of(model, added_tokens))
            adapted: nn.Module = peft.inject_adapter_in_model(options, model, _NAME, low_cpu_mem_usage=on_meta)
        except ValueError as error:
            raise ConfigError(f"lora: {str(error).splitlines()[0][:300]}; name layers of the model in lora.targets") from None
        if not on_meta:
            draw_adapter(adapted, seed)
        return adapted

    return adapt


def _rows_of(model: Any, tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Return the rows of tokens in the embeddings, and in an untied head, by the name of the layer."""
    if not tokens:
        return None
    layers = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings and model.get_output_embeddings() is not None:
        layers.append(model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(layer)].rpartition(".")[2]: list(tokens) for layer in layers}


def peft_config(config: LoraConfig, token_rows: dict[str, list[int]] | None = None, head: Head = "causal_lm") -> peft.LoraConfig:
    """Convert the options to peft's."""
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    return peft.LoraConfig(
        task_type="CAUSAL_LM" if head == "causal_lm" else "SEQ_CLS",
        trainable_token_indices=token_rows,
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules=targets,
        use_dora=config.dora,
        use_rslora=config.rslora,
    )


def adapted_layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """Return the layers of a model that carry an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Disable the adapter temporarily: the base model as a frozen reference without extra memory. Use without gradients.

    peft's own switch would also change which parameters require gradients, which sharded parameters must not do meanwhile.
    """
    layers = list(adapted_layers(model).values())
    assert layers, "the model has no adapter"
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


@torch.no_grad()
def merge_adapter(model: Any) -> Any:
    """Add the adapter to the base weights in place and remove its layers: a plain model again (unsharded)."""
    for name, layer in adapted_layers(model).items():
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        if isinstance(model.get_submodule(parent), AuxiliaryTrainingWrapper):  # wraps the embeddings of added tokens
            parent, _, attribute = parent.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    model.__dict__.pop("peft_config", None)
    return model.requires_grad_(True)


def save_adapter(
    model: Any,
    reader: WeightReader,
    config: LoraConfig,
    directory: Path,
    *,
    base: str,
    added_tokens: Sequence[int] = (),
    head: Head = "causal_lm",
) -> None:
    """Write an adapter so that `PeftModel.from_pretrained` opens it; `base` is the base model's directory.

    `reader` has the values of the adapted `model`. The head of a reward model was trained too, and is written with it.
    """
    from safetensors.torch import save_file

    written = peft_config(config, _rows_of(model, added_tokens), head)
    written.base_model_name_or_path = base
    head_modules = [] if head == "causal_lm" else [name for name, _ in model.named_children() if name != model.base_model_prefix]
    if head_modules:
        written.modules_to_save = head_modules
    written.inference_mode = True
    directory.mkdir(parents=True, exist_ok=True)
    written.save_pretrained(directory)
    tensors = {
        f"base_model.model.{name.replace(f'.{_NAME}', '')}": reader.read(name).contiguous()
        for name, _ in model.named_parameters()
        if any(mark in name for mark in _MARK) or name.partition(".")[0] in head_modules
    }
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
