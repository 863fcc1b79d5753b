"""Deterministic kernels of torch, beside the environment that PrecisionConfig names."""

import torch


def use_deterministic_algorithms() -> None:
    """Make torch choose deterministic kernels in this process, and raise RuntimeError for an operation without one."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it chooses kernels by their time
    # new memory need not be filled with NaN: all of it is written before it is read
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
