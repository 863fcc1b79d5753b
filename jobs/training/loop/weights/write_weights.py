"""Write a model as a Hugging Face directory, tensor by tensor: no more than a tensor and its converted copy are in memory."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, apply_converters, revert_weight_conversion

from ropewalk.jobs.training.loop.weights.weight_reader import WeightReader

_MAX_FILE_SIZE = "50GB"  # as transformers
_FORMATS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}


@torch.no_grad()
def write_model(model: Any, reader: WeightReader, directory: Path, dtype: torch.dtype) -> None:
    """Write configuration and weights of a model whose parameters are on the meta device, as `save_pretrained` does.

    Parameters are written in `dtype`, persistent buffers in their own number format.
    """
    model.config.dtype, model.config.architectures = dtype, [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
    formats = {name: dtype for name, _ in model.named_parameters()}
    formats |= {name: buffer.dtype for name, buffer in model.named_buffers() if reader.shape(name) is not None}
    shapes = {name: torch.empty(reader.shape(name) or (), dtype=format_, device="meta") for name, format_ in formats.items()}
    groups = list(_groups(model, list(formats)))
    written = {name: tensor for group in groups for name, tensor in _converted(model, {n: shapes[n] for n in group}).items()}
    split = split_torch_state_dict_into_shards(written, max_shard_size=_MAX_FILE_SIZE)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    with ExitStack() as stack:
        positions: dict[str, tuple[BinaryIO, int]] = {}
        for file, names in split.filename_to_tensors.items():
            stream = stack.enter_context((directory / file).open("wb"))
            starts = write_header(stream, {name: written[name] for name in names})
            positions |= {name: (stream, start) for name, start in starts.items()}
        for group in groups:
            tensors = {name: reader.read(name).to(formats[name]) for name in group}
            for name, tensor in _converted(model, tensors).items():
                write_tensor(*positions[name], tensor)


def _converted(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors by the names, and in the layouts, in which the architecture is stored."""
    converted: dict[str, torch.Tensor] = revert_weight_conversion(model, tensors)
    return converted


def _groups(model: Any, names: list[str]) -> Iterator[list[str]]:
    """Yield the names of tensors that are converted together, mostly one."""
    transforms = [transform.reverse_transform() for transform in get_model_conversion_mapping(model, add_legacy=False)[::-1]]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    groups: dict[str, list[str]] = {}
    for name in names:
        renamed, pattern = apply_converters(name, converters)
        groups.setdefault(name if pattern is None else renamed, []).append(name)
    yield from groups.values()


def write_header(stream: BinaryIO, tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """Write the header of a safetensors file, and return the position of each tensor's bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # keeps all aligned
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        tensor = tensors[name]
        header[name] = {"dtype": _FORMATS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def write_tensor(stream: BinaryIO, position: int, tensor: torch.Tensor) -> None:
    """Write the bytes of a tensor at a position of a safetensors file."""
    stream.seek(position)
    stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
