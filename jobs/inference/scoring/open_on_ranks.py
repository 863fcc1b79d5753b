"""Open a model on all ranks: one mapped copy on each node, or divided among the ranks."""

import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.jobs.inference.scoring.open_model import OpenModel, StoredModel, find_stored, load_stored
from ropewalk.jobs.training.loop.weights.weight_reader import for_ranks, set_values
from ropewalk.jobs.training.loop.weights.write_weights import write_model
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import Group
from ropewalk.sharding.lock_step import LockStep
from ropewalk.sharding.parallelize import parallelize

Shard = Literal["auto", "always", "never"]

_SHARE_OF_MEMORY = 0.8  # of the available memory, or disk, that a copy may take
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class RankModel:
    """A model that all ranks have opened together."""

    opened: OpenModel
    lock_step: LockStep | None  # of a sharded model

    def settle(self) -> None:
        """End a round of work, in which each rank has called the model as often as it needed."""
        if self.lock_step is not None:
            self.lock_step.settle()


def find_on_ranks(ref: str, root: Path, group: Group, step: int | None = None) -> StoredModel:
    """Find the model on every rank, all of them the same checkpoint. Raises ConfigError, CheckpointError."""
    stored = find_stored(ref, root, step=step)
    first = group.broadcast_object([stored.step] if group.is_main else None)[0]
    # a newer checkpoint may have been saved meanwhile
    return stored if stored.step == first else find_stored(ref, root, step=first)


def open_on_ranks(stored: StoredModel, group: Group, dtype: torch.dtype, shard: Shard = "auto") -> RankModel:
    """Open a model on all ranks: divided among them if `shard` is always, or is auto and a copy does not fit into a node."""
    if shard == "always" or (shard == "auto" and group.any(not _fits(stored.model, group, dtype))):
        return _open_sharded(stored, group, dtype)
    if group.world_size == 1 or not stored.reader.in_parts or group.device.type != "cpu" or _is_mapped(stored, dtype):
        return RankModel(opened=load_stored(stored, device=group.device, dtype=dtype), lock_step=None)
    return RankModel(opened=_open_shared(stored, group, dtype), lock_step=None)


def _is_mapped(stored: StoredModel, dtype: torch.dtype) -> bool:
    """Return True if the files of a directory have this number format: then every process that opens them maps them."""
    return stored.directory is not None and bool(
        AutoConfig.from_pretrained(stored.directory, trust_remote_code=False).dtype == dtype
    )


def _fits(model: nn.Module, group: Group, dtype: torch.dtype) -> bool:
    num_bytes = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if group.device.type == "cuda":
        return num_bytes <= _SHARE_OF_MEMORY * int(torch.cuda.mem_get_info(group.device)[0])
    free = min(psutil.virtual_memory().available, shutil.disk_usage(tempfile.gettempdir()).free)
    return num_bytes <= _SHARE_OF_MEMORY * free


def _open_sharded(stored: StoredModel, group: Group, dtype: torch.dtype) -> RankModel:
    precision = PrecisionConfig(compute="bf16" if dtype == torch.bfloat16 else "fp32")
    model: Any = parallelize(stored.model, group, ParallelConfig(reshard="always"), precision, trainable=False)
    set_values(model, for_ranks(stored.reader, group))
    return RankModel(opened=stored.opened(model), lock_step=LockStep(model, group))


def _open_shared(stored: StoredModel, group: Group, dtype: torch.dtype) -> OpenModel:
    """Open a copy that the first rank on each machine writes, and all its ranks map."""
    host = socket.gethostname()
    with tempfile.TemporaryDirectory(prefix="model-") as temporary:
        folders = group.all_gather_object([host, temporary])
        first = next(rank for rank, (name, _) in enumerate(folders) if name == host)
        folder = Path(folders[first][1]) / "model"
        if group.rank == first:
            partial = folder.with_name("partial")
            partial.mkdir()
            write_model(stored.model, stored.reader, partial, dtype)
            partial.rename(folder)
        while not folder.is_dir():  # no collective: their time limit may be shorter than the writing takes
            time.sleep(_POLL_SECONDS)
        opened = stored.opened(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False))
        group.barrier()  # the files may go now, since they are mapped
    return opened
