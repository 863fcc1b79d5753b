"""One rank of test_tensor_parallel.py: steps of divided models beside the whole ones, and a checkpoint that changes its mesh."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.jobs.training.loop import head
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.config import NextTokenConfig
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.objective import NextTokenZLoss
from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.tail import whole_logits_reason
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.jobs.training.loop.weights.lora import lora_adapter
from ropewalk.jobs.training.loop.weights.weight_reader import LoadedWeights, set_values
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.staging import local_tensor
from ropewalk.sharding.config import CheckpointConfig, ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import parallelize
from ropewalk.sharding.placement import local_pieces

RANKS = 4
BATCH, VOCABULARY = 8, 97  # no degree divides the vocabulary
TOKENS = {2: 11, 4: 12}  # by the number of ranks; two do not divide the tokens
Z_LOSS = 1e-2
_SIZES = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
}
MODELS: dict[str, dict[str, Any]] = {
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3"},
    "gemma2": {"model_type": "gemma2", "query_pre_attn_scalar": 8, "sliding_window": 8},
    "phi3": {"model_type": "phi3"},
    "qwen3_moe": {"model_type": "qwen3_moe", "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
}
LORA, EXPERTS = " + LoRA", " by expert"  # after the name of a model
BY_EXPERT = [f"{name}{EXPERTS}" for name in ("qwen3_moe", "mixtral")]
EXACT, SINGLE = torch.float64, torch.float32
# axes of the mesh, other keys of `parallel`, names of models, formats
Case = tuple[dict[str, int], dict[str, Any], list[str], list[torch.dtype]]
Cases = dict[int, list[Case]]
CASES: Cases = {
    2: [({"shard": 1, "tensor": 2}, {}, ["qwen3_moe"], [EXACT])],
    4: [
        ({"shard": 2, "tensor": 2}, {}, ["llama"], [SINGLE]),
        ({"shard": 2, "tensor": 2}, {}, BY_EXPERT[:1], [EXACT]),
        ({"shard": 2, "tensor": 2}, {}, [f"llama, tied{LORA}"], [EXACT]),
        ({"shard": 2, "tensor": 2}, {"reshard": "always", "activation_checkpointing": "full"}, ["llama, tied"], [EXACT]),
    ],
}
ALL_CASES: Cases = {
    2: [({"shard": 1, "tensor": 2}, {}, [*MODELS, *BY_EXPERT], [EXACT])],
    4: [
        ({"shard": 2, "tensor": 2}, {"activation_checkpointing": "selective"}, [f"{BY_EXPERT[0]}{LORA}"], [EXACT]),
        ({"shard": 2, "tensor": 2}, {}, list(MODELS), [EXACT, SINGLE]),
        ({"shard": 2, "tensor": 2}, {}, [f"{name}{LORA}" for name in MODELS if name != "phi3"], [EXACT]),
        ({"replicate": 2, "shard": 1, "tensor": 2}, {"accumulate": "sharded"}, ["qwen3", f"qwen3{LORA}", BY_EXPERT[0]], [EXACT]),
        ({"shard": 2, "tensor": 2}, {}, BY_EXPERT, [EXACT, SINGLE]),
        CASES[4][3],
    ],
}
SAVED = {"shard": 2, "tensor": 2}  # on 4 ranks
LOADED: dict[int, list[dict[str, int]]] = {
    2: [{"shard": 2}, {"shard": 1, "tensor": 2}],
    3: [{"shard": 3}],
    4: [{"shard": 4}, {"shard": 2, "tensor": 2}],
}


def config_of(name: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**_SIZES, **MODELS[name.removesuffix(LORA).removesuffix(EXPERTS)])


def whole_model(name: str, dtype: torch.dtype) -> Any:
    """The model on one rank, whose norms and biases are not trivial."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = _without_kernels(AutoModelForCausalLM.from_config(config_of(name), dtype=torch.float64))
    model = _with_adapter(name, torch.float64, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.to(dtype)


def _with_adapter(name: str, dtype: torch.dtype, model: nn.Module) -> nn.Module:
    if not name.endswith(LORA):
        return model
    # not on experts, which is refused
    lora = LoraConfig(rank=3, targets=["q_proj", "v_proj", "o_proj"] if "moe" in name or "mixtral" in name else "all-linear")
    return lora_adapter(lora, 0)(model).to(dtype)


def _without_kernels(model: Any) -> Any:
    """Let a mixture of experts use plain products: grouped ones have no fp64."""
    if model.config.model_type in {"qwen3_moe", "mixtral"}:
        model.set_experts_implementation("eager")
    return model


@contextmanager
def exact_models() -> Iterator[None]:
    """Let models compute in fp64 what they round to fp32, which hides differences below 1e-7.

    That is norms and attention of gemma2, and the weights of mixtral's experts, whose gradients are summed over ranks.
    """
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    def softmax(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return x.softmax(dim)

    def route(self: Any, hidden_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits_NE = nn.functional.linear(hidden_BTD.reshape(-1, self.hidden_dim), self.weight)
        weights, experts = logits_NE.softmax(-1).topk(self.top_k, dim=-1)
        return logits_NE, weights / weights.sum(dim=-1, keepdim=True), experts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gemma2RMSNorm, "forward", norm)
        patch.setattr(MixtralTopKRouter, "forward", route)
        patch.setattr(nn.functional, "softmax", softmax)
        yield


def divided(name: str, group: Group, parallel: ParallelConfig, dtype: torch.dtype = torch.float32) -> Any:
    if EXPERTS in name:
        parallel = parallel.model_copy(update={"expert": parallel.tensor})
    bare = _without_kernels(skeleton(config_of(name))).to(dtype)
    return parallelize(bare, group, parallel, PrecisionConfig(), adapter=partial(_with_adapter, name, dtype))


def batch_of(num_tokens: int) -> Batch:
    generator = torch.Generator().manual_seed(3)
    ids, labels = torch.randint(0, VOCABULARY, (2, BATCH, num_tokens), generator=generator)
    labels[:, :3] = IGNORE
    return {"input_ids": ids, "labels": labels}


def whole_step(model: Any, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss, and gradients of the summed one."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits.flatten(0, 1).double()
    labels = batch["labels"].flatten()
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
    penalty = logits[labels != IGNORE].logsumexp(-1).square().sum()
    (loss + Z_LOSS * penalty).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item() / int((labels != IGNORE).sum()), gradients


def errors(name: str, group: Group, keys: dict[str, Any], dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of loss, worst gradient and gradient norm of a divided step."""
    full, batch = whole_model(name, dtype), batch_of(TOKENS[group.world_size])
    loss, gradients = whole_step(full, batch)
    values = {"steps": 1, "batch": {"global_batch": BATCH, "micro_batch": 2}, "optim": {"warmup_steps": 0}, "parallel": keys}
    config = NextTokenConfig.model_validate({**values, "precision": {"compute": "fp32"}})
    model = divided(name, group, config.parallel, dtype)
    set_values(model, LoadedWeights(lambda: full))
    for key, buffer in model.named_buffers():
        buffer.copy_(full.get_buffer(key))  # gemma2's scale of embeddings, made in fp32
    assert whole_logits_reason(model) is None
    state = TrainState(model, make_optimizer(model, config.optim))
    filler = {key: value[:1] for key, value in batch.items()}
    step = TrainStep(state, NextTokenZLoss(Z_LOSS), filler, config, group, dropout=False)
    samples = step.plan.samples(0)
    mine = {key: value[samples.start : samples.stop] for key, value in batch.items()}
    sums = step.backward(mine, 0)
    loss_sum, weight, *_ = group.sum_over_data(sums.values.clone()).tolist()
    stats = step.reduce_stats(sums, stop=False, save_failed=False)
    worst = 0.0
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained.keys() == gradients.keys()
    for key, parameter in trained.items():
        for box in local_pieces(parameter):
            difference = (local_tensor(parameter.grad)[box.inside] - gradients[key][box.window]).abs().max()
            worst = max(worst, float(difference / gradients[key].abs().max()))
    norm = torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt() / weight
    if dtype == torch.float32:
        step.update(stats, 1e-3)  # fused AdamW over parameters of two meshes
    return {"loss": abs(loss_sum / weight / loss - 1), "gradient": worst, "norm": abs(float(stats.gradient_norm / norm) - 1)}


def whole_value(name: str, shape: torch.Size) -> torch.Tensor:
    """The value of a tensor of the checkpoint."""
    generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(name.encode()) >> 1)
    return torch.randn(shape, generator=generator)


def train_state(name: str, group: Group, parallel: ParallelConfig) -> TrainState:
    model = divided(name, group, parallel)
    return TrainState(model, make_optimizer(model, OptimConfig()))


@torch.no_grad()
def save(run: RunDir, name: str, group: Group, parallel: ParallelConfig) -> None:
    state = train_state(name, group, parallel).tensors
    for key, tensor in state.items():
        for box in local_pieces(tensor):
            local_tensor(tensor)[box.inside].copy_(whole_value(key, tensor.shape)[box.window])
    store = Checkpoints(run, group, Fence(run, 1, 0), CheckpointConfig(), {"model": name})
    store.save(state, step=1, position=0, progress={})
    store.wait()


def load(run: RunDir, name: str, group: Group, parallel: ParallelConfig) -> None:
    state = train_state(name, group, parallel).tensors
    store = Checkpoints(run, group, Fence(run, 1, 0), CheckpointConfig(), {"model": name})
    checkpoint = store.find()
    assert checkpoint is not None
    store.load(*checkpoint, state)
    for key, tensor in state.items():
        wanted = whole_value(key, tensor.shape)
        assert all(torch.equal(local_tensor(tensor)[box.inside], wanted[box.window]) for box in local_pieces(tensor)), key


def with_axes(group: Group, axes: dict[str, int]) -> tuple[Group, ParallelConfig]:
    """Arrange the same ranks along other axes."""
    mesh = init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))
    return replace(group, mesh=mesh), ParallelConfig(tensor=axes.get("tensor", 1), replicate=axes.get("replicate", 1))


def rank_main(rank: int, size: int, port: int, plan: tuple[list[Case], dict[str, Path]], folder: Path) -> None:
    """Report the errors of each case; save checkpoints of the models in `runs` on 4 ranks, and load them on any number."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    head._CHUNK_TOKENS, head._CHUNK_NUMBERS = 5, VOCABULARY
    cases, runs = plan
    results = {}
    with process_group() as world:
        for axes, keys, names, dtypes in cases:
            group, parallel = with_axes(world, axes)
            for name in names:
                for dtype in dtypes:
                    with exact_models():
                        values = errors(name, group, {**parallel.model_dump(), **keys}, dtype)
                    results[f"{axes}, {keys}, {name}, {dtype}"] = values
        for name, path in runs.items():
            if size == RANKS:
                save(RunDir(path), name, *with_axes(world, SAVED))
            for axes in LOADED[size]:
                load(RunDir(path), name, *with_axes(world, axes))
    (folder / f"{rank}-of-{size}.json").write_text(json.dumps(results))
