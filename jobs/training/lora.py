"""Low-rank adapters: peft's layers put into a model before it is sharded, switched off, merged, and written in peft's format."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import xxhash
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from cluster.errors import ConfigError
from jobs.training.config import LoraConfig
from sharding.parallelize import Adapter

_NAME = "default"  # of the adapter, as peft calls one that has no other
_MARK = ("lora_",)  # in the names of all parameters that peft adds: lora_A, lora_B, lora_magnitude_vector


def lora_adapter(config: LoraConfig, seed: int) -> Adapter:
    """What puts the adapter into a model, in place, and freezes all else. Its first values depend on the seed alone.

    Raises ConfigError where the model has no such layers.
    """

    def adapt(model: nn.Module) -> nn.Module:
        on_meta = any(parameter.is_meta for parameter in model.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(xxhash.xxh3_64_intdigest(f"lora:{seed}".encode()) >> 1)
            try:
                adapted: nn.Module = peft.inject_adapter_in_model(peft_config(config), model, _NAME, low_cpu_mem_usage=on_meta)
            except ValueError as error:
                raise ConfigError(f"lora: {str(error).splitlines()[0][:300]}; name layers of the model in lora.targets") from None
        return adapted

    return adapt


def peft_config(config: LoraConfig) -> peft.LoraConfig:
    """The same options in peft's words."""
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules=targets,
        use_dora=config.dora,
        use_rslora=config.rslora,
    )


def adapted_layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """The layers of a model that carry an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Compute as the model did before it was adapted: a frozen reference that takes no memory. For use without gradients.

    peft's own switch would also change what requires a gradient, which sharded parameters must not do on the way.
    """
    layers = list(adapted_layers(model).values())
    assert layers, "a model without an adapter has none to switch off"
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
    """Add the adapter to the weights beside it, in place, and take its layers out: a plain model again (unsharded)."""
    for name, layer in adapted_layers(model).items():
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    model.__dict__.pop("peft_config", None)
    return model.requires_grad_(True)


def save_adapter(model: nn.Module, config: LoraConfig, directory: Path, base: str | None) -> None:
    """Write the adapter of an unsharded model as `PeftModel.from_pretrained` opens it; `base` is where the base model lies."""
    from safetensors.torch import save_file

    written = peft_config(config)
    written.base_model_name_or_path = base
    written.inference_mode = True
    directory.mkdir(parents=True, exist_ok=True)
    written.save_pretrained(directory)
    tensors = {
        f"base_model.model.{name.replace(f'.{_NAME}', '')}": parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if any(mark in name for mark in _MARK)
    }
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
