"""Peak rates of devices: known ones from a table, others measured."""

import time

import pytest
import torch

from ropewalk.jobs.training.loop.report.throughput import Meter, peak_flops

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),  # a part of one
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_card_is_known_by_its_whole_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(CUDA) == peak


@pytest.mark.parametrize(("name", "mfu"), [("NVIDIA L4", True), ("NVIDIA of next year", False)])
def test_the_memory_of_an_unknown_card_is_told_too(monkeypatch: pytest.MonkeyPatch, name: str, mfu: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    values = Meter(CUDA, 1, tokens_per_step=1, flops_per_token=1.0).read(time.perf_counter())
    assert values["system/gpu_memory_gib"] == 3
    assert ("train/mfu" in values) == mfu
    assert "system/gpu_memory_gib" not in Meter(torch.device("cpu"), 1, tokens_per_step=1, flops_per_token=1.0).read(
        time.perf_counter()
    )
