"""Throughput of training: tokens per second, MFU if the peak is entry, memory."""

import resource
import time
from typing import Any

import torch
from torch import nn

from ropewalk.jobs.training.loop.devices import device_named
from ropewalk.sharding.group import Group


def peak_flops(device: torch.device) -> float | None:
    """Return the peak FLOP/s of this device, or None if it is unknown or a part of a GPU (MIG)."""
    if device.type != "cuda":
        return None
    entry = device_named(torch.cuda.get_device_name(device))
    return entry.flops if entry is not None else None


def flops_per_token(num_parameters: int, num_layers: int, hidden: int, seq_len: int) -> float:
    """Return the FLOPs of forward and backward: 6N for the matrices and 12·L·h·T for attention (PaLM, appendix B)."""
    return 6 * num_parameters + 12 * num_layers * hidden * seq_len


class Meter:
    """Tokens per second of the group, measured between two readings."""

    def __init__(self, device: torch.device, world_size: int, *, tokens_per_step: int, flops_per_token: float) -> None:
        self.device, self.world_size = device, world_size
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.peak = peak_flops(device)
        self._tokens = 0
        self._since = time.perf_counter()

    def count_step(self) -> None:
        self._tokens += self.tokens_per_step

    def read(self, now: float) -> dict[str, float]:
        """Return the metrics until `now`, of time.perf_counter, since the last call or `restart`."""
        rate = self._tokens / max(1e-9, now - self._since)
        self._tokens, self._since = 0, now
        resident_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        values = {"train/tokens_per_second": rate, "system/rank_memory_gib": resident_gib}
        if self.peak:
            values["train/mfu"] = rate * self.flops_per_token / (self.peak * self.world_size)
        if self.device.type == "cuda":
            values["system/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return values

    def restart(self) -> None:
        """Exclude the time until now: it was spent on a validation or a rollback."""
        self._tokens, self._since = 0, time.perf_counter()


def meter_of(model: nn.Module, config: Any, group: Group, *, tokens_per_sample: int, global_batch: int) -> Meter:
    """Create a meter for a Hugging Face model of this configuration."""
    num_parameters = sum(p.numel() for p in model.parameters())
    flops = flops_per_token(num_parameters, config.num_hidden_layers, config.hidden_size, tokens_per_sample)
    tokens = tokens_per_sample * global_batch
    return Meter(group.device, group.world_size, tokens_per_step=tokens, flops_per_token=flops)
