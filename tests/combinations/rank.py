"""A small training run with some of the options, by the loop's own parts, in fp64 unless an option says otherwise."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.finetune.source import pack
from ropewalk.jobs.training.loop import head
from ropewalk.jobs.training.loop import model as building
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.documents import document_positions
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.objective import make_objective
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.jobs.training.loop.update.state import MovingAverage, TrainState
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.state import trained_parameters
from ropewalk.sharding.config import CheckpointConfig, ParallelConfig
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import REPLICATE, SHARD, TENSOR, Group, counts_piece, process_group
from ropewalk.sharding.parallelize import Adapter
from tests.combinations.options import CHUNKED, DOCUMENTS, EXPERTS, FLOAT8, OPTIONS, PACKED, RESUMED, SAVED_STEP, STEPS, config_of
from tests.jobs.launch import TINY
from tests.torchao import allow_torchao

VOCABULARY, TOKENS = 64, 16
SHAPE = {**TINY, "num_key_value_heads": 2}  # divisible by two ranks
OF_EXPERTS = {**SHAPE, "model_type": "qwen3_moe", "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}


def train(group: Group, choice: tuple[str, ...], config: FinetuneConfig, folder: Path) -> list[float]:
    """Return loss and gradient norm of each step, then the norms of the weights and of their average.

    With RESUMED the run is saved midway by several ranks, and goes on from there on one.
    """
    plan = ModelPlan(
        config=AutoConfig.for_model(**(OF_EXPERTS if EXPERTS in choice else SHAPE), vocab_size=VOCABULARY), seq_len=TOKENS
    )
    plan = plan.with_lora(config.lora, seed=0)
    run = RunDir(folder)
    with _whole_or_chunked(CHUNKED in choice):
        dtype = torch.float64 if all(OPTIONS[name].exact for name in choice) else torch.float32
        building.skeleton = partial(_skeleton, dtype)
        if plan.adapter is not None:
            plan = replace(plan, adapter=partial(_adapted, dtype, plan.adapter))
        model = build_model(plan, run, group, config.parallel, config.precision)
        moments = torch.bfloat16 if config.precision.optimizer == "bf16" else dtype
        optimizer = make_optimizer(model, config.optim, moments)
        ema = MovingAverage(model, optimizer, config.ema.decay) if config.ema is not None else None
        state = TrainState(model, optimizer, trained_only=config.lora is not None, ema=ema)
        objective = make_objective(None, config.z_loss)
        step = TrainStep(state, objective, batch_of(range(1), choice), config, group, dropout=False)
        checkpoints, first, figures = _checkpoints(choice, plan, run, group, folder), 0, []
        if checkpoints is not None and group.world_size == 1:
            newest = checkpoints.find()
            assert newest is not None
            checkpoints.load(*newest, state.tensors)
            reshard_all(model)
            first = SAVED_STEP
        for number in range(first, STEPS):
            batch = batch_of(step.plan.samples(8 * number), choice)
            sums = step.backward(batch, number)
            loss_sum, weight, *_ = group.sum_over_data(sums.values.clone()).tolist()
            stats = step.reduce_stats(sums, stop=False, save_failed=False)
            step.update(stats, config.optim.lr)
            if ema is not None:
                ema.update(number + 1, stats.applied)
            assert stats.applied
            figures += [loss_sum / weight, float(stats.gradient_norm)]
            if checkpoints is not None and group.world_size > 1 and number + 1 == SAVED_STEP:
                checkpoints.save(state.tensors, step=SAVED_STEP, position=8 * SAVED_STEP, progress={})
                checkpoints.close()
                return figures
        averages = list(ema.tensors.values()) if ema is not None else []
        return [*figures, _norm(group, trained_parameters(model, optimizer)), *([_norm(group, averages)] if averages else [])]


def _skeleton(dtype: torch.dtype, *arguments: Any) -> Any:
    model = skeleton(*arguments).to(dtype)
    if model.config.model_type == OF_EXPERTS["model_type"]:
        model.set_experts_implementation("eager")  # grouped products have no fp64
    return model


def _adapted(dtype: torch.dtype, adapter: Adapter, model: nn.Module) -> nn.Module:
    return adapter(model).to(dtype)


def _checkpoints(choice: tuple[str, ...], plan: ModelPlan, run: RunDir, group: Group, folder: Path) -> Checkpoints | None:
    if RESUMED not in choice:
        return None
    config = CheckpointConfig(path=str(folder / "-".join(choice).replace(" ", "_")))
    return Checkpoints(run, group, Fence(run, 1, 0), config, plan.fingerprint)


def batch_of(samples: range, choice: tuple[str, ...]) -> Batch:
    """Samples of random tokens. With PACKED they have two documents, with DOCUMENTS some."""
    packed, parts = PACKED in choice, []
    for sample in samples:
        tokens = torch.randint(0, VOCABULARY, (TOKENS + 2,), generator=torch.Generator().manual_seed(sample))
        cuts = [tokens[: 7 + sample % 3], tokens[7 + sample % 3 :]] if packed else [tokens[1:]]
        parts.append(pack([(cut[:-1], cut[1:]) for cut in cuts], TOKENS))
    batch = {name: torch.cat([part[name] for part in parts]) for name in (parts or [pack([], TOKENS)])[0]}
    batch = batch if parts else {name: tensor[:0] for name, tensor in batch.items()}
    if DOCUMENTS in choice:
        batch["position_ids"] = document_positions(batch["input_ids"] % 8, start=0)
    return batch if packed or DOCUMENTS in choice else {name: batch[name] for name in ("input_ids", "labels")}


def _norm(group: Group, tensors: list[Any]) -> float:
    squares = [tensor.to_local().detach().double().square().sum() for tensor in tensors if counts_piece(tensor, group)]
    total = torch.stack([torch.zeros((), dtype=torch.float64), *squares]).sum()
    return float(group.all_reduce_sum(total).sqrt())


@contextmanager
def _whole_or_chunked(chunked: bool) -> Iterator[None]:
    before = head._CHUNK_TOKENS, head._CHUNK_NUMBERS
    head._CHUNK_TOKENS, head._CHUNK_NUMBERS = (8, 1) if chunked else (1 << 20, 1 << 30)
    try:
        yield
    finally:
        head._CHUNK_TOKENS, head._CHUNK_NUMBERS = before


def _divided(group: Group, parallel: ParallelConfig) -> Group:
    if group.world_size == 1:
        return group
    copies, tensor = parallel.replicate, parallel.tensor
    assert isinstance(copies, int)
    sizes = {REPLICATE: copies, SHARD: group.world_size // copies // tensor, TENSOR: tensor}
    axes = {axis: size for axis, size in sizes.items() if size > 1 or axis == SHARD}
    return replace(group, mesh=init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes)))


def main(rank: int, size: int, port: int, folder: Path, choices: list[tuple[str, ...]]) -> None:
    """Train with each of the choices; write the figures, or the error, of each."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    if any(FLOAT8 in choice for choice in choices):
        allow_torchao()
    # without inductor, whose kernels test_parallelize.py compares
    nn.Module.compile = partialmethod(nn.Module.compile, backend="aot_eager")  # type: ignore[method-assign, assignment]
    path = folder / f"{size}-{rank}.json"
    results: dict[str, Any] = read_json(path) or {}
    with process_group(ParallelConfig()) as group:
        for choice in choices:
            config = config_of(choice)
            assert isinstance(config, FinetuneConfig)
            torch._dynamo.reset()
            torch.manual_seed(0)
            try:
                figures: Any = train(_divided(group, config.parallel), choice, config, folder)
            except (RuntimeError, ValueError, TypeError, AssertionError) as error:  # on all ranks, or the others wait
                figures = f"{type(error).__name__}: {error}"
            results[" + ".join(choice)] = figures
            path.write_text(json.dumps(results))
