"""Values of a model's parameters, read in parts: the interface, and readers that combine or change the values of others."""

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from ropewalk.jobs.training.loop.architecture.grid import on_grid
from ropewalk.jobs.training.loop.architecture.sharing import LAYERS
from ropewalk.jobs.training.loop.model_keys import GridConfig
from ropewalk.jobs.training.loop.weights.initial_values import normal_numbers
from ropewalk.jobs.training.loop.weights.on_main import on_main
from ropewalk.sharding.checkpoints.staging import local_tensor
from ropewalk.sharding.group import Group
from ropewalk.sharding.placement import local_pieces

log = logging.getLogger(__name__)

_BLOCK_BYTES = 16 << 20  # of old rows, read at once for their statistics
_ADDED_VARIANCE = 1e-9  # of an added row, in units of the variance of the old rows, as in transformers


class WeightReader(Protocol):
    """Values of parameters and persistent buffers, by name. Rows are the first dim; a tensor without dims is read whole."""

    @property
    def in_parts(self) -> bool:
        """True if reading a part takes no more memory than a few tensors; False if the whole model is loaded first."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor, or None if there is none of this name."""

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Return the rows of a tensor from `begin` to `end` (unset: all), on the CPU, in any number format."""


@torch.no_grad()
def set_values(model: nn.Module, reader: WeightReader) -> None:
    """Set all parameters of a model, or this rank's shards of them, and the buffers that the reader has."""
    for name, parameter in model.named_parameters():
        boxes, local = local_pieces(parameter), local_tensor(parameter)
        if parameter.dim() == 0:
            local.copy_(reader.read(name))
            continue
        # once for each parameter on every rank, also if it holds several blocks or none
        begin = min((box.start[0] for box in boxes), default=0)
        rows = reader.read(name, begin, max((box.window[0].stop for box in boxes), default=0))
        for box in boxes:
            first, *others = box.window
            local[box.inside].copy_(rows[(slice(first.start - begin, first.stop - begin), *others)])
    for name, buffer in model.named_buffers():
        if reader.shape(name) is not None:
            buffer.copy_(reader.read(name))


class LoadedWeights:
    """The tensors of a whole model in memory, loaded at the first use."""

    in_parts = False

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = self._load().state_dict()
        return tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._tensors[name].shape) if name in self._tensors else None

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        tensor = self._tensors[name]
        return tensor[begin:end] if tensor.dim() else tensor


class FirstWeights:
    """Tensors of one reader, and of another those that the first one lacks."""

    def __init__(self, reader: WeightReader, rest: WeightReader) -> None:
        self._reader, self._rest = reader, rest

    @property
    def in_parts(self) -> bool:
        return self._reader.in_parts and self._rest.in_parts

    def shape(self, name: str) -> tuple[int, ...] | None:
        shape = self._reader.shape(name)
        return self._rest.shape(name) if shape is None else shape

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        reader = self._rest if self._reader.shape(name) is None else self._reader
        return reader.read(name, begin, end)


class ChangedWeights:
    """A reader that changes the values of another one."""

    def __init__(self, reader: WeightReader) -> None:
        self._reader = reader

    @property
    def in_parts(self) -> bool:
        return self._reader.in_parts

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._reader.shape(name)

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        return self._reader.read(name, begin, end)


class GrownWeights(ChangedWeights):
    """A reader whose embeddings, and head, get rows for added tokens: the mean of the old rows, and a little noise."""

    def __init__(self, reader: WeightReader, num_rows: Mapping[str, int], seed: int) -> None:
        super().__init__(reader)
        self._num_rows, self._seed = num_rows, seed
        self._statistics: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def shape(self, name: str) -> tuple[int, ...] | None:
        shape = self._reader.shape(name)
        return (self._num_rows[name], *shape[1:]) if shape is not None and name in self._num_rows else shape

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        shape = self._reader.shape(name)
        if shape is None or name not in self._num_rows:
            return self._reader.read(name, begin, end)
        last = self._num_rows[name] if end is None else end
        old = self._reader.read(name, min(begin, shape[0]), min(last, shape[0]))
        if last <= shape[0]:
            return old
        first, width = max(begin - shape[0], 0), torch.Size(shape[1:]).numel()
        mean, deviation = self._statistics_of(name, shape)
        noise = normal_numbers(f"{self._seed}:{name}:added", first * width, (last - shape[0]) * width).view(-1, *shape[1:])
        return torch.cat([old.float(), (mean + noise * deviation * _ADDED_VARIANCE**0.5).float()])

    def _statistics_of(self, name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each column in fp64, summed block by block in the order of the rows."""
        if name not in self._statistics:
            rows = max(1, _BLOCK_BYTES // (8 * torch.Size(shape[1:]).numel()))
            mean = sum(block.sum(0) for block in self._blocks(name, shape[0], rows)) / shape[0]
            squares = sum((block - mean).square_().sum(0) for block in self._blocks(name, shape[0], rows))
            self._statistics[name] = torch.as_tensor(mean), (torch.as_tensor(squares) / shape[0]).sqrt()
        return self._statistics[name]

    def _blocks(self, name: str, total: int, rows: int) -> Any:
        return (self._reader.read(name, first, min(first + rows, total)).double() for first in range(0, total, rows))


class SharedWeights(ChangedWeights):
    """A reader of a model whose layers share weights: the first layer of a group gets the values of the first, or the mean."""

    def __init__(self, reader: WeightReader, groups: list[list[int]], values: str) -> None:
        super().__init__(reader)
        self._mean = values == "mean"
        self._others = {first: others for first, *others in groups}

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        number, _, rest = name.removeprefix(LAYERS).partition(".")
        if not self._mean or not name.startswith(LAYERS):
            return self._reader.read(name, begin, end)
        names = [name, *(f"{LAYERS}{other}.{rest}" for other in self._others[int(number)])]
        return torch.stack([self._reader.read(each, begin, end).float() for each in names]).mean(0)


class RoundedWeights(ChangedWeights):
    """A reader whose matrices of layers are rounded to a grid."""

    def __init__(self, reader: WeightReader, grid: GridConfig, matrices: set[str]) -> None:
        super().__init__(reader)
        self._grid, self._matrices = grid, matrices

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        rows = self._reader.read(name, begin, end)
        return on_grid(rows, self._grid) if name in self._matrices and rows.numel() else rows


class BroadcastWeights:
    """A reader that rank 0 alone reads, tensor by tensor; all ranks call `read` for the same names in the same order."""

    in_parts = True

    def __init__(self, reader: WeightReader, group: Group) -> None:
        self._reader, self._group = reader, group

    def shape(self, name: str) -> tuple[int, ...] | None:
        shape = self._group.broadcast_object(self._reader.shape(name) if self._group.is_main else None, list[int] | None)
        return None if shape is None else tuple(shape)

    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        value = self._reader.read(name).float() if self._group.is_main else None
        shape = self._group.broadcast_object(None if value is None else list(value.shape), list[int])
        whole = torch.empty(shape, device=self._group.device)
        if value is not None:
            whole.copy_(value)
        dist.broadcast(whole, src=0)
        return whole[begin:end] if whole.dim() else whole


def for_ranks(reader: WeightReader, group: Group) -> WeightReader:
    """Return a reader of which each rank reads its parts, in the order of `set_values`; called on all ranks."""
    if reader.in_parts:
        return reader
    # rank 0 loads the whole model now, which on a slow disk may take longer than the time limit of a collective
    on_main(group, lambda: reader.shape("") is None)
    return BroadcastWeights(reader, group)
