"""Load the unsharded model of a run in one process, without a process group, a GPU or the job's configuration."""

from typing import Any

import torch
from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.architecture.model_record import Head, Weights, checkpoint_folder, require_record
from ropewalk.jobs.training.loop.weights.run_weights import first_weights, open_checkpoint
from ropewalk.jobs.training.loop.weights.weight_reader import WeightReader
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest
from ropewalk.sharding.checkpoints.stored_tensors import newest_complete


def load_model(
    run: RunDir,
    step: int | None = None,
    *,
    merge: bool = True,
    ema: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> tuple[Any, CheckpointManifest]:
    """Return the full model of the newest complete checkpoint (or that of `step`) in evaluation mode, as `open_checkpoint` does.

    It is held once: each tensor is read, converted and put on the device before the next.
    """
    opened = open_checkpoint(run, step, merge=merge, ema=ema)
    return load_tensors(opened.model, opened.reader, dtype=dtype, device=device).eval(), opened.manifest


def load_first_weights(config: Any, weights: Weights | None, run: RunDir, head: Head = "causal_lm") -> Any:
    """Return the full model that the training of `run` starts from, on the CPU in fp32; layers share weights as configured."""
    return load_tensors(skeleton(config, head), first_weights(config, weights, run, head))


@torch.no_grad()
def load_tensors(
    model: Any, reader: WeightReader, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Any:
    """Give a model, whose parameters are on the meta device, its values; it is changed in place."""
    loaded: dict[int, nn.Parameter] = {}  # by the id of the parameter on the meta device: tied ones stay tied
    for name, parameter in list(model.named_parameters()):
        value = reader.read(name).to(device or "cpu", dtype).contiguous()
        loaded[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, loaded[id(parameter)])
    for name, buffer in list(model.named_buffers()):
        if reader.shape(name) is not None:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, reader.read(name).to(buffer.dtype))
    model.config.dtype = dtype
    return model if device is None else model.to(device)


def best_step(run: RunDir) -> int:
    """Return the step of the checkpoint with the best validation so far. Raises ConfigError if the run keeps none."""
    require_record(run)
    _, manifest = newest_complete(checkpoint_folder(run))
    step = manifest.progress.get("best_step")
    if step is None:
        job, key = run.record.get("job"), "validation.keep_best"
        raise ConfigError(f"run {run.id}: this {job} run keeps no best checkpoint; train with {key}: true, or omit --best")
    return int(step)
