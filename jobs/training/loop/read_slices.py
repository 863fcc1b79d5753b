"""Read the first weights from a directory of safetensors files, each rank its own slices."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping

from ropewalk.sharding.fsdp import local_range

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_FORMATS = ("F32", "F16", "BF16")


def has_slices(model: Any, directory: Path) -> bool:
    """Return True if the files hold each parameter of a model (on the meta device) by its name, in its shape, unconverted."""
    if get_model_conversion_mapping(model, add_legacy=False):
        return False
    files = _files(directory)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(safe_open(path, framework="pt")) for path in {*files.values()} if path.is_file()}
        for name, parameter in model.named_parameters():
            path = files.get(name)
            if path not in opened:
                return False
            part = opened[path].get_slice(name)
            if part.get_dtype() not in _FORMATS or part.get_shape() != list(parameter.shape):
                return False
    return True


@torch.no_grad()
def read_slices(model: nn.Module, directory: Path) -> None:
    """Set this rank's shards of all parameters."""
    files = _files(directory)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(safe_open(path, framework="pt")) for path in {*files.values()}}
        for name, parameter in model.named_parameters():
            local, begin = local_range(parameter)
            first = begin // max(parameter.shape[1:].numel(), 1)
            if local.numel():
                part = opened[files[name]].get_slice(name)
                local.copy_(part[first : first + local.shape[0]] if local.dim() else part[:])


def _files(directory: Path) -> dict[str, Path]:
    """Return the file of each tensor."""
    index, single = directory / _INDEX, directory / _SINGLE
    if index.is_file():
        return {name: directory / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    if not single.is_file():
        return {}
    with safe_open(single, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), single)
