"""Layout of a checkpoint's files: one safetensors file per rank, one flat tensor for each kind of state and dtype in it.

A file has the header, a table with a checksum of each block of 1 MiB of the data, and the data. Nothing in it has to be parsed:
header and offsets follow from the tensors, the mesh and the placements in the manifest.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from ropewalk.cluster.errors import CheckpointError
from ropewalk.sharding.checkpoints.state import split_name
from ropewalk.sharding.placement import Placement, Shape, holds_first_copy, local_shape, placement_of

BLOCK_BYTES = 1 << 20
TABLE = "blocks"  # name of the table of checksums in a file
_SUM_BYTES = 8
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class StoredTensor(NamedTuple):
    """Shape, dtype and placement of a tensor of a checkpoint."""

    shape: Shape
    dtype: str
    placement: Placement

    @classmethod
    def of(cls, tensor: torch.Tensor, axes: Sequence[str]) -> "StoredTensor":
        """Describe a tensor on the mesh with these axes."""
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), placement_of(tensor, axes))

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class RankFile(NamedTuple):
    """Sizes of one rank's file: the header, with its length in front, the table, and the data."""

    header: bytes
    size: int  # of the data

    @property
    def num_blocks(self) -> int:
        return -(-self.size // BLOCK_BYTES)

    @property
    def data_start(self) -> int:
        return len(self.header) + self.num_blocks * _SUM_BYTES


class FileLayout:
    """Place of each tensor of a state in the files of the ranks that saved it; offsets count from the start of the data."""

    def __init__(self, tensors: Mapping[str, StoredTensor], mesh: Shape) -> None:
        self.tensors, self.mesh = dict(tensors), mesh
        self.world_size = math.prod(mesh)
        self._elements: dict[tuple[Shape, Placement], Any] = {}
        self._cursor: dict[str, tuple[int, Any]] = {}
        self._flat: dict[str, list[str]] = {}
        self._number: dict[str, tuple[str, int]] = {}
        for name, tensor in self.tensors.items():
            if tensor.dtype not in _CODES:
                raise CheckpointError(f"{name}: no checkpoint can hold its dtype {tensor.dtype}; use {', '.join(_CODES)}")
            key = f"{split_name(name)[0]}.{tensor.dtype}"
            names = self._flat.setdefault(key, [])
            self._number[name] = key, len(names)
            names.append(name)

    def _elements_of(self, name: str) -> Any:
        """Return the number of elements of a tensor that each rank saves, as an array."""
        tensor = self.tensors[name]
        key = tensor.shape, tensor.placement
        if key not in self._elements:
            saved = (
                math.prod(local_shape(tensor.shape, self.mesh, tensor.placement, rank))
                if holds_first_copy(self.mesh, tensor.placement, rank)
                else 0
                for rank in range(self.world_size)
            )
            self._elements[key] = np.fromiter(saved, np.int64, self.world_size)
        return self._elements[key]

    @cached_property
    def _flat_elements(self) -> dict[str, Any]:
        """The elements of each flat tensor on each rank; wide dtypes first, so that all are aligned."""
        keys = sorted(self._flat, key=lambda key: (-_itemsize(key), key))
        return {key: sum(self._elements_of(name) for name in self._flat[key]) for key in keys}

    @cached_property
    def _flat_starts(self) -> dict[str, Any]:
        starts, position = {}, np.zeros(self.world_size, np.int64)
        for key, elements in self._flat_elements.items():
            starts[key] = position
            position = position + elements * _itemsize(key)
        return starts

    def starts(self, name: str) -> Any:
        """Return the first byte of a tensor in the data of each rank, as an array. Fast for names in the manifest's order."""
        key, number = self._number[name]
        reached, position = self._cursor.get(key, (0, self._flat_starts[key]))
        if reached > number:
            reached, position = 0, self._flat_starts[key]
        for before in self._flat[key][reached:number]:
            position = position + self._elements_of(before) * _itemsize(key)
        self._cursor[key] = number, position
        return position

    def contents(self, rank: int) -> Iterator[tuple[str, int, int]]:
        """Yield name, first byte and end of each tensor in the data of a rank."""
        for key in self._flat_elements:
            position = int(self._flat_starts[key][rank])
            for name in self._flat[key]:
                end = position + int(self._elements_of(name)[rank]) * _itemsize(key)
                if end > position:
                    yield name, position, end
                position = end

    @cached_property
    def writers(self) -> list[int]:
        """The ranks that have a file, ascending: those that save a byte."""
        total = sum(self._flat_elements.values(), np.zeros(self.world_size, np.int64))
        return [int(rank) for rank in np.flatnonzero(total)]

    def file(self, rank: int) -> RankFile:
        spans, end = [], 0
        for key, elements in self._flat_elements.items():
            count, start = int(elements[rank]), int(self._flat_starts[key][rank])
            end = start + count * _itemsize(key)
            spans.append((key, _CODES[key.rpartition(".")[2]], count, start, end))
        return RankFile(_header(spans, end), end)


def _itemsize(key: str) -> int:
    dtype: torch.dtype = getattr(torch, key.rpartition(".")[2])
    return dtype.itemsize


def _header(spans: Iterable[tuple[str, str, int, int, int]], size: int) -> bytes:
    """Return the header of a safetensors file. A span: name, dtype, elements, first byte, end."""
    num_blocks = -(-size // BLOCK_BYTES)
    table = num_blocks * _SUM_BYTES
    entries = {TABLE: {"dtype": "U64", "shape": [num_blocks], "data_offsets": [0, table]}}
    for key, code, count, first, end in spans:
        entries[key] = {"dtype": code, "shape": [count], "data_offsets": [table + first, table + end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for aligned data
    return len(text).to_bytes(8, "little") + text
