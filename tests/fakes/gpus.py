"""A machine with GPUs that are not there: what NVML says, here and in child processes."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

NVML = Path(__file__).parent / "nvml"
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "ROPEWALK_MACHINE_DEVICES",
    "ROPEWALK_NODE_GPUS",
    "FAKE_GPUS",
    "FAKE_GPUS_IN_USE",
)


def machine_with(gpus: int | None, patch: pytest.MonkeyPatch, **variables: str) -> None:
    """Let NVML count so many GPUs (None: there is no driver), and the user's environment say no more than `variables`."""
    for name in VARIABLES:
        patch.delenv(name, raising=False)
    for name, value in {**({} if gpus is None else {"FAKE_GPUS": str(gpus)}), **variables}.items():
        patch.setenv(name, value)
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    patch.setenv("PYTHONPATH", os.pathsep.join([str(NVML), *filter(None, places)]))
    spec = spec_from_file_location("pynvml", NVML / "pynvml.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    patch.setitem(sys.modules, "pynvml", module)
