"""Gradients of several micro-batches: whole on every rank, or each rank's shard of them."""

import json
from pathlib import Path

import pytest
import torch

from ropewalk.cluster.run.directory import RunDir
from ropewalk.sharding.config import ParallelConfig
from ropewalk.sharding.fsdp import accumulates_sharded
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, launch, losses, make_run, pretrain_config, weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


def held(run: RunDir) -> list[list[int]]:
    """[whole gradients, shards] of both ranks together, in elements, as each pass begins."""
    ranks = [(run.path / f"gradients-{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    return [[sum(both) for both in zip(*map(json.loads, lines), strict=True)] for lines in zip(*ranks, strict=True)]


def test_sharded_accumulation_keeps_no_whole_gradient_and_gives_equal_results(data: Path, tmp_path: Path) -> None:
    runs = {}
    for how in ("auto", "sharded", "unsharded"):
        runs[how] = make_run(tmp_path, pretrain_config(data, steps=4, parallel={"accumulate": how}))
        launch(runs[how], 2, TEST_HOOK="record_gradients")  # 4 sequences a rank, in 2 passes
    parameters = sum(tensor.numel() for name, tensor in weights(runs["auto"]).items() if name.startswith("model."))
    assert held(runs["sharded"]) == [[0, 0], [0, parameters]] * 4
    assert held(runs["unsharded"]) == [[0, 0], [2 * parameters, 0]] * 4
    assert equal(weights(runs["auto"]), weights(runs["unsharded"])), "small models are not changed by a bit"
    assert losses(runs["auto"]) == losses(runs["unsharded"])
    assert losses(runs["sharded"]) == pytest.approx(losses(runs["unsharded"]), rel=1e-6)
    sharded, whole = weights(runs["sharded"]), weights(runs["unsharded"])
    assert all(torch.allclose(sharded[name], whole[name], rtol=1e-4, atol=1e-6) for name in whole)


@pytest.mark.soak("another training; make test compares sharded and whole gradients above, and numbers of ranks in other tests")
def test_sharded_gradients_do_not_depend_on_the_world_size(data: Path, tmp_path: Path) -> None:
    whole, sharded = (
        make_run(
            tmp_path, pretrain_config(data, steps=4, batch={"global_batch": 7, "micro_batch": 1}, parallel={"accumulate": how})
        )
        for how in ("unsharded", "sharded")
    )
    launch(whole, 1)
    launch(sharded, 3)
    assert losses(sharded) == pytest.approx(losses(whole), rel=1e-6)


@pytest.mark.parametrize(
    ("gib", "frozen_gib", "accumulate", "sharded"),
    [(2, 0, "auto", False), (3, 0, "auto", True), (1, 8, "auto", False), (1, 0, "sharded", True), (8, 0, "unsharded", False)],
)
def test_gradients_of_more_than_2_gib_are_accumulated_sharded(gib: int, frozen_gib: int, accumulate: str, sharded: bool) -> None:
    with torch.device("meta"):
        model = torch.nn.ModuleList([torch.nn.Linear(2**15, 2**13, bias=False) for _ in range(gib + frozen_gib)])  # 1 GiB each
    for layer in list(model)[gib:]:
        layer.requires_grad_(False)
    assert accumulates_sharded(model, ParallelConfig.model_validate({"accumulate": accumulate})) is sharded
