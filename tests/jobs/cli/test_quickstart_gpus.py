"""Device of the quickstart's training, for any number of GPUs."""

from pathlib import Path

import pytest

from ropewalk.cluster.config import Resources
from ropewalk.cluster.gpus import deal_devices
from ropewalk.jobs.cli.quickstart import device_notice, settings, usable_gpus
from tests.fakes.gpus import machine_with


@pytest.mark.parametrize(
    ("gpus", "devices", "message"),
    [
        (0, [[], []], "torch finds no usable GPU"),
        (1, [[], []], "1 GPU is too few for 2 ranks"),
        (2, [["0"], ["1"]], "2 of the 2 GPUs"),
        (8, [["0"], ["1"]], "2 of the 8 GPUs"),
    ],
)
def test_each_rank_has_a_gpu_of_its_own_or_none_has_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, devices: list[list[str]], message: str
) -> None:
    machine_with(gpus, monkeypatch)
    resources = Resources.model_validate(settings(tmp_path, 40, gpus)["pretrain"]["resources"])
    resources.check_ranks()
    assert (resources.nodes.most, resources.local_world_size) == (2, 1)
    assert deal_devices(resources) == devices
    assert message in device_notice(gpus)


@pytest.mark.soak("imports torch in another process; make test runs test_devices_are_counted_as_nvml_counts_them")
def test_gpus_that_torch_cannot_use_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(8, monkeypatch, CUDA_VISIBLE_DEVICES="")
    assert usable_gpus() == 0
    machine_with(8, monkeypatch, CUDA_VISIBLE_DEVICES="GPU-not-there,GPU-nor-this")  # torch itself looks, in another process
    assert usable_gpus() == 0
