"""Muon on sharded matrices: equal to torch's on whole ones, its arithmetic divided, its state resumed at any world size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.jobs.training.loop.forecast.size import ModelSize
from ropewalk.sharding.config import ParallelConfig
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, launch, losses, make_run, pretrain_config, weights
from tests.jobs.training.loop.muon_rank import STEPS, muon_main
from tests.jobs.training.loop.test_checkpoint_elastic import copy_of, stop_at_once
from tests.ranks import run_ranks


def results_at(ranks: int, parallel: ParallelConfig, folder: Path) -> list[dict[str, Any]]:
    run_ranks(muon_main, ranks, parallel, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


# 14 matrices: the last round has one for each rank or for some of them
@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        pytest.param(1, {}, marks=pytest.mark.soak("nothing is divided; make test runs three ranks")),
        (3, {}),
        pytest.param(2, {"replicate": 2}, marks=pytest.mark.soak("make test runs copies that are divided")),
        pytest.param(4, {"replicate": 2}, marks=pytest.mark.soak("make test runs shards, and copies, by themselves")),
        pytest.param(4, {"tensor": 2}, marks=pytest.mark.soak("make test runs copies that are divided")),
        (4, {"replicate": 2, "tensor": 2}),
    ],
)
def test_sharded_muon_is_torchs_bit_by_bit(ranks: int, parallel: dict[str, int], tmp_path: Path) -> None:
    results = results_at(ranks, ParallelConfig.model_validate(parallel), tmp_path)
    for result in results:
        assert set(result["worst"].values()) == {0.0}
        assert result["matrices"] == 14
    counts = [result["orthogonalized"] for result in results]
    assert sum(counts) == STEPS * 14, "no matrix is orthogonalized twice"
    assert max(counts) <= STEPS * -(-14 // ranks)


@pytest.mark.soak(
    "seven ranks; test_sharded_muon_is_torchs_bit_by_bit divides its state, test_stopped_and_resumed_is_bit_identical and"
    " test_resume_2_1_3_ranks_sees_every_sample_once resume"
)
@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_state_keeps_its_type_and_resumes_at_any_number_of_ranks(moments: str, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    optim = {"name": "muon", "lr": 3e-3, "warmup_steps": 2}
    config = pretrain_config(data, steps=4, optim=optim, precision={"optimizer": moments})
    undisturbed, stopped = make_run(tmp_path, config), make_run(tmp_path, config)
    launch(undisturbed, 2)
    step = stop_at_once(stopped, 2)
    other = copy_of(stopped, tmp_path, "other")
    before = weights(stopped, step)
    launch(stopped, 2)
    launch(other, 3)
    assert losses(stopped) == losses(undisturbed)
    assert equal(weights(stopped), weights(undisturbed))
    assert losses(other) == pytest.approx(losses(undisturbed), rel=1e-6 if moments == "fp32" else 1e-4)
    check_tensors(before, torch.float32 if moments == "fp32" else torch.bfloat16)


def check_tensors(tensors: dict[str, torch.Tensor], moments: torch.dtype) -> None:
    """Each matrix of a layer has one moment, every other weight two; the plan counts their bytes."""
    trained = {name.removeprefix("model."): each for name, each in tensors.items() if name.startswith("model.")}
    matrices = {name for name, each in trained.items() if ".layers." in name and each.dim() == 2}
    for name, weight in trained.items():
        names = {key.removeprefix(f"optimizer.{name}.") for key in tensors if key.startswith(f"optimizer.{name}.")}
        assert names == ({"momentum_buffer"} if name in matrices else {"step", "exp_avg", "exp_avg_sq"})
        assert weight.dtype == torch.float32
        assert {tensors[f"optimizer.{name}.{key}"].dtype for key in names - {"step"}} == {moments}
    counts = [sum(trained[name].numel() for name in names) for names in (trained, matrices)]
    size = ModelSize(parameters=counts[0], trained=counts[0], matrices=counts[1])
    in_all = sum(each.nbytes for name, each in tensors.items() if not name.endswith(".step"))
    assert size.checkpoint_bytes(muon=True, moment_bytes=moments.itemsize, average=False) == in_all
