"""Models that no rank holds whole: calibrated for pruning, and generating."""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.weights import weight_reader
from ropewalk.jobs.training.loop.weights.run_weights import open_directory
from ropewalk.jobs.training.loop.weights.weight_reader import set_values
from ropewalk.jobs.training.pruning.activations import collect, collect_on_ranks
from ropewalk.jobs.training.rollouts import generate
from ropewalk.jobs.training.rollouts.generate import Draw, Sampling, generate_answers, ready_to_generate, uniforms
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import parallelize
from tests.jobs.tiny import tiny_model
from tests.ranks import run_ranks

PROMPTS = [[1, 2, 3], [4, 5]]
ALWAYS = ParallelConfig(reshard="always")


def batches() -> list[torch.Tensor]:
    return [torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def answers(model: Any, rounds: int) -> list[Any]:
    numbers = uniforms(0, [Draw(slot, 0, 0) for slot in range(2)], 5)
    return [generate_answers(model, PROMPTS, numbers, frozenset({256}), Sampling(1.0)) for _ in range(rounds)]


def generated(model: Any, group: Group, *, fits: bool) -> tuple[list[Any], bool]:
    """Return a rank's answers, and whether its layers are divided between its calls; the second rank has less to do."""
    with mock.patch.object(generate, "_fits", return_value=fits), ready_to_generate(model, group, ALWAYS):
        result = answers(model, 2 if group.is_main else 1)
        divided = isinstance(model.model.layers[0].mlp.up_proj.weight, DTensor)
    return result, divided


def rank_main(rank: int, size: int, port: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    weight_reader.LoadedWeights.read = mock.Mock(side_effect=AssertionError("a rank holds the whole model"))  # type: ignore[method-assign]
    with process_group(ALWAYS) as group:
        whole, reader = open_directory(folder / "model")
        activations = collect_on_ranks(whole.config, reader, group, batches())
        torch.save(activations.sums, folder / f"sums-{rank}.pt")
        model = parallelize(skeleton(whole.config), group, ALWAYS, PrecisionConfig())
        set_values(model, reader)
        (folder / f"{rank}.json").write_text(json.dumps([generated(model, group, fits=fits) for fits in (True, False)]))


def test_two_ranks_calibrate_and_generate_as_one_does(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    run_ranks(rank_main, 2, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    expected = collect(model, batches())
    for rank, rounds in ((0, 2), (1, 1)):
        assert torch.equal(torch.load(tmp_path / f"sums-{rank}.pt"), expected.sums)
        (gathered, divided), (in_lock_step, in_parts) = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (divided, in_parts) == (False, True)
        assert gathered == in_lock_step
        assert [[tokens for tokens, *_ in each] for each in gathered] == [
            [a.tokens for a in each] for each in answers(model, rounds)
        ]
