"""Weights in fewer bits, by torchao or in the format of compressed-tensors, written so that transformers opens them."""

import shutil
from pathlib import Path
from typing import Any

import torch

from cluster.errors import ConfigError
from jobs.compress.artifacts import require_torchao, save
from jobs.compress.methods import CompressedTensorsConfig, TorchaoConfig
from jobs.compress.sparsify import linears
from jobs.inference.open_model import OpenModel


def check_groups(model: Any, size: int) -> None:
    """Raise ConfigError unless groups of this size fill the rows of all matrices of the layers."""
    odd = [f"{name} ({linear.in_features} inputs)" for name, linear in linears(model.model.layers) if linear.in_features % size]
    if odd:
        raise ConfigError(f"group_size: {size} does not divide {odd[0]}; choose a divisor of all matrices' inputs")


def by_torchao(model: Any, opened: OpenModel, options: TorchaoConfig, folder: Path) -> Path:
    """Write the model with its layers' matrices quantized. Embeddings stay, and so does a head that is tied to them."""
    require_torchao()
    from torchao import quantization  # type: ignore[import-not-found]  # an extra, without types
    from transformers import AutoModelForCausalLM, TorchAoConfig

    kinds = {
        "int8": quantization.Int8WeightOnlyConfig,
        "float8": quantization.Float8WeightOnlyConfig,
        "int4": lambda: quantization.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, "int4"),  # noqa: B009 - torch's stubs lack it
            granularity=quantization.PerGroup(options.group_size),
        ),
    }
    if options.type == "int4":
        check_groups(model, options.group_size)
    plain = save(model, opened, folder / "unquantized")
    quantized = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=TorchAoConfig(kinds[options.type]()), dtype=torch.float32
    )
    shutil.rmtree(folder / "unquantized")
    return save(quantized, opened, folder)


def by_compressed_tensors(model: Any, opened: OpenModel, options: CompressedTensorsConfig, folder: Path) -> Path:
    """Write the model as vLLM reads it: symmetric, rounded to nearest; the head stays, and what is tied to it."""
    from compressed_tensors import quantization  # type: ignore[import-untyped]
    from compressed_tensors.compressors import ModelCompressor  # type: ignore[import-untyped]
    from compressed_tensors.quantization.utils import calculate_qparams  # type: ignore[import-untyped]

    group = options.group_size if options.type == "int4" else None
    if group is not None:
        check_groups(model, group)
    bits = {"int8": 8, "int4": 4}[options.type]
    args = quantization.QuantizationArgs(
        num_bits=bits, type="int", symmetric=True, strategy="channel" if group is None else "group", group_size=group
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    config = quantization.QuantizationConfig(config_groups={"linears": scheme}, ignore=["lm_head"])
    quantization.apply_quantization_config(model, config)
    for _, linear in linears(model.model.layers):
        grouped = linear.weight.detach().reshape(linear.out_features, -1, group or linear.in_features)
        scale, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
        linear.get_parameter("weight_scale").data.copy_(scale)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    path = save(model, opened, folder)
    compressor.update_config(str(path))
    return path
