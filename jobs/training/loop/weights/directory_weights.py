"""Weights of a Hugging Face directory, read from its safetensors files in parts; older names and layouts are converted."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class Files:
    """The tensors in the safetensors files of a directory."""

    def __init__(self, directory: Path) -> None:
        self._opened: dict[Path, Any] = {}
        self._paths = self._list(directory)

    def names(self) -> list[str]:
        return list(self._paths)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        part: torch.Tensor = self._slice(name)[begin:end] if self.shape(name) else self._slice(name)[...]
        return part

    def _slice(self, name: str) -> Any:
        return self._open(self._paths[name]).get_slice(name)

    def _open(self, path: Path) -> Any:
        if path not in self._opened:
            self._opened[path] = safe_open(path, framework="pt")
        return self._opened[path]

    def _list(self, directory: Path) -> dict[str, Path]:
        index, single = directory / _INDEX, directory / _SINGLE
        if index.is_file():
            return {name: directory / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        return dict.fromkeys(self._open(single).keys(), single) if single.is_file() else {}


@dataclass
class _Conversion:
    """Stored tensors from which transformers makes one or several tensors of the model."""

    converter: WeightConverter
    target: str  # the first tensor
    stored: dict[str, list[str]] = field(default_factory=dict)  # names by the pattern that they match

    def convert(self, model: Any, tensors: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the tensors of the model by name; `tensors` are stored ones, by pattern."""
        converter = deepcopy(self.converter)  # takes tensors as it does when a model is saved
        for pattern, parts in tensors.items():
            for part in parts:
                converter.add_tensor(self.target, pattern, pattern, part)
        converted = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}

    @property
    def stacks_rows(self) -> bool:
        """True if each row of the model's tensor is made of one stored tensor of each pattern, as for experts."""
        first, *others = self.converter.operations
        return (
            isinstance(first, MergeModulelist)
            and first.dim == 0
            and all(isinstance(operation, Concatenate) and operation.dim != 0 for operation in others)
        )


class DirectoryWeights:
    """The weights of a directory by the names of a model, whose parameters may be on the meta device."""

    in_parts = True

    def __init__(self, model: Any, directory: Path) -> None:
        self._model, self._files = model, Files(directory)
        self._stored: dict[str, str] = {}  # by the model's name
        self._conversions: dict[str, _Conversion] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._match()
        self._follow_ties()

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        if name in self._stored:
            return self._files.read(self._stored[name], begin, end)
        conversion = self._conversions[name]
        if conversion.stacks_rows:
            stored = {pattern: names[begin:end] for pattern, names in conversion.stored.items()}
            if not all(stored.values()):
                return torch.empty(0, *self._shapes[name][1:])
            begin, end = 0, None
        else:
            stored = conversion.stored
        tensors = {pattern: [self._files.read(each) for each in names] for pattern, names in stored.items()}
        converted = conversion.convert(self._model, tensors)[name]
        return converted[begin:end] if converted.dim() else converted

    def _match(self) -> None:
        """Find the name of each stored tensor in the model as `from_pretrained` does."""
        model = self._model
        transforms, state = get_model_conversion_mapping(model), model.state_dict()
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        conversions: dict[str, _Conversion] = {}
        for stored in sorted(self._files.names(), key=dot_natural_key):
            name, pattern = rename_source_key(stored, renamings, converters, model.base_model_prefix, state)
            if name not in state and stored in state:
                name, pattern = rename_source_key(stored, [], [], model.base_model_prefix, state)
            if name not in state:
                continue
            if pattern is None:
                self._stored[name], self._shapes[name] = stored, self._files.shape(stored)
            else:
                conversion = conversions.setdefault(name, _Conversion(by_pattern[pattern], name))
                conversion.stored.setdefault(pattern, []).append(stored)
        for conversion in conversions.values():
            empty = {
                pattern: [torch.empty(self._files.shape(each), device="meta") for each in names]
                for pattern, names in conversion.stored.items()
            }
            for name, value in conversion.convert(model, empty).items():
                self._conversions[name], self._shapes[name] = conversion, tuple(value.shape)

    def _follow_ties(self) -> None:
        """Let the first name of tied parameters stand for the one that is stored."""
        names: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        for first, *others in names.values():
            stored = next((name for name in others if name in self._stored), None)
            if first not in self._shapes and stored is not None:
                self._stored[first], self._shapes[first] = self._stored[stored], self._shapes[stored]


def is_readable(directory: Path, config: Any) -> bool:
    """Return True if a directory has safetensors files, and not quantized ones, which transformers alone can read."""
    has_files = (directory / _INDEX).is_file() or (directory / _SINGLE).is_file()
    return has_files and getattr(config, "quantization_config", None) is None
