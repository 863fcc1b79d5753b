"""How fast training goes: tokens a second, share of the peak FLOPs where they are known, memory."""

import resource
import time
from typing import Any

import torch
from torch import nn

from sharding.group import Group

# dense bf16 peak of one device, FLOP/s; vendors' data sheets, without sparsity
_PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of this device, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for word, flops in _PEAK_FLOPS.items() if word in name), None)


def flops_per_token(num_parameters: int, num_layers: int, hidden: int, seq_len: int) -> float:
    """6N for the matrices and 12·L·h·T for attention: forward and backward (PaLM, appendix B)."""
    return 6 * num_parameters + 12 * num_layers * hidden * seq_len


class Meter:
    """Rates since the last reading."""

    def __init__(self, device: torch.device, world_size: int, flops_a_token: float) -> None:
        self.device, self.world_size, self.flops_a_token = device, world_size, flops_a_token
        self.peak = peak_flops(device)
        self._tokens = 0
        self._since = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Tokens of the global batch that were just learnt."""
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """Metrics since the last call."""
        now = time.perf_counter()
        rate = self._tokens / max(1e-9, now - self._since)
        self._tokens, self._since = 0, now
        values = {"train/tokens_per_second": rate, "system/rank_memory_gib": _resident_gib()}
        if self.peak:
            values["train/mfu"] = rate * self.flops_a_token / (self.peak * self.world_size)
            values["system/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return values

    def restart(self) -> None:
        """Leave out what was not training (a validation, a rollback)."""
        self._tokens, self._since = 0, time.perf_counter()


def meter_of(model: nn.Module, config: Any, group: Group, seq_len: int) -> Meter:
    """A meter for a Hugging Face model of this configuration."""
    count = sum(p.numel() for p in model.parameters())
    flops = flops_per_token(count, config.num_hidden_layers, config.hidden_size, seq_len)
    return Meter(group.device, group.world_size, flops)


def _resident_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
