"""Kernels of attention: their check before a run starts, and their choice in a model."""

from importlib.util import find_spec
from typing import Any, Literal

from ropewalk.cluster.errors import ConfigError

Kernel = Literal["sdpa", "flash", "flex"]
IMPLEMENTATIONS = {"flash": "flash_attention_2", "flex": "flex_attention"}  # names of transformers
_PACKAGES = ("flash_attn", "kernels")  # of which transformers needs one


def kernel_problem(kernel: Kernel, *, gpus: int) -> str | None:
    """Return the reason why a node with so many GPUs cannot train with a kernel; None: it can."""
    if kernel == "sdpa":
        return None
    if gpus == 0:
        reason = "runs on GPUs only" if kernel == "flash" else "computes no gradients on CPUs"
        return f"attention: {kernel} {reason}; set resources.gpus, or attention=sdpa"
    if kernel == "flash" and not any(map(find_spec, _PACKAGES)):
        return (
            "attention: flash needs the package flash-attn, or kernels, which downloads it built: run pip install kernels, or"
            " pip install flash-attn --no-build-isolation; or set attention=sdpa or flex"
        )
    return None


def use_kernel(model: Any, kernel: Kernel) -> None:
    """Let a model compute attention with a kernel; `sdpa` leaves it as it is. Raises ConfigError if the model cannot."""
    if kernel == "sdpa":
        return
    try:
        model.set_attn_implementation(IMPLEMENTATIONS[kernel])
    except (ValueError, ImportError) as error:
        raise ConfigError(f"attention: {type(model).__name__} cannot use {kernel}; set attention=sdpa ({error})") from error
