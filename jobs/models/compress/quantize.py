"""Quantize weights with torchao or in the format of compressed-tensors, as directories that transformers opens."""

import shutil
from pathlib import Path
from typing import Any

import torch

from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.models.compress.artifacts import require_torchao, save
from ropewalk.jobs.models.compress.methods import TorchaoConfig
from ropewalk.jobs.training.loop.architecture.grid import check_grid, layer_matrices, scales
from ropewalk.jobs.training.loop.model_keys import GridConfig


def by_torchao(model: Any, opened: OpenModel, options: TorchaoConfig, folder: Path) -> Path:
    """Write the model with quantized layer matrices. Embeddings and a tied head stay unchanged."""
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
        check_grid(model, GridConfig(type="int4", group_size=options.group_size))
    plain = save(model, opened, folder / "unquantized")
    quantized = AutoModelForCausalLM.from_pretrained(
        plain,
        quantization_config=TorchAoConfig(kinds[options.type]()),
        dtype=torch.float32,
        trust_remote_code=False,
    )
    shutil.rmtree(folder / "unquantized")
    return save(quantized, opened, folder)


def by_compressed_tensors(model: Any, opened: OpenModel, grid: GridConfig, folder: Path) -> Path:
    """Write the model in vLLM's format, on the grid of quantization-aware training; the head and tied weights stay unchanged."""
    from compressed_tensors import quantization  # type: ignore[import-untyped]
    from compressed_tensors.compressors import ModelCompressor  # type: ignore[import-untyped]

    group = grid.group_size if grid.type == "int4" else None
    args = quantization.QuantizationArgs(
        num_bits={"int8": 8, "int4": 4}[grid.type],
        type="int",
        symmetric=True,
        strategy="channel" if group is None else "group",
        group_size=group,
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    config = quantization.QuantizationConfig(config_groups={"linears": scheme}, ignore=["lm_head"])
    quantization.apply_quantization_config(model, config)
    for _, linear in layer_matrices(model):
        linear.get_parameter("weight_scale").data.copy_(scales(linear.weight, grid))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    path = save(model, opened, folder)
    compressor.update_config(str(path))
    return path
