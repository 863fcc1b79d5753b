"""One rank of test_head_sharded.py: losses and gradients of a sharded model, in chunks and from whole logits."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ropewalk.jobs.training.distill.losses import Distillation, Mix
from ropewalk.jobs.training.loop import head
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.head import each_token
from ropewalk.jobs.training.loop.losses import cross_entropy
from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.jobs.training.loop.tail import whole_logits_reason
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.fsdp import fill, fsdp_modules, reshard_all, set_micro_batch
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import Adapter, parallelize
from tests.jobs.training.loop.test_head import T, V, batch_of, logits_of, model_of, plain_log_probs

MICRO_BATCHES = 2
LossOf = Callable[[Any, Batch], torch.Tensor]


def randomized(adapter: Adapter | None) -> Adapter | None:
    """The adapter with values that are not zero."""

    def adapt(model: nn.Module) -> nn.Module:
        assert adapter is not None
        adapted = adapter(model)
        torch.manual_seed(2)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        return adapted

    return None if adapter is None else adapt


def sharded(group: Group, kind: str, parallel: ParallelConfig, precision: PrecisionConfig, **options: Any) -> Any:
    with torch.device("meta"):
        skeleton = model_of(kind)
    model = parallelize(skeleton, group, parallel, precision, **options)
    full, adapter = model_of(kind) if group.is_main else None, options.get("adapter")
    fill(model, adapter(full) if full is not None and adapter is not None else full, group)
    return model


def weights_of(batch: Batch) -> torch.Tensor:
    """Weights of tokens; the same for the same batch."""
    return (batch["input_ids"] + 1.0) / V


def next_token(model: Any, batch: Batch) -> torch.Tensor:
    return NextToken()(model, batch).loss_sum


def weighted(model: Any, batch: Batch) -> torch.Tensor:
    return torch.sum(each_token(model, batch, cross_entropy)[0] * weights_of(batch))


def plain_next_token(model: Any, batch: Batch) -> torch.Tensor:
    return -plain_log_probs(model, batch).sum()


def plain_weighted(model: Any, batch: Batch) -> torch.Tensor:
    return -torch.sum(plain_log_probs(model, batch) * weights_of(batch))


def pairs_of(group: Group, parallel: ParallelConfig) -> dict[str, tuple[LossOf, LossOf]]:
    teacher = sharded(group, "capped", parallel, PrecisionConfig(), trainable=False)
    distillation = Distillation(Mix("reverse_kl", 0.5, 1.0, 0.5), teacher)

    def distilled(model: Any, batch: Batch) -> torch.Tensor:
        return distillation(model, batch).loss_sum

    def plain_distilled(model: Any, batch: Batch) -> torch.Tensor:
        counted = batch["labels"] != IGNORE
        with torch.no_grad():
            log_p = logits_of(teacher, batch["input_ids"])[counted].double().log_softmax(-1)
        logits = logits_of(model, batch["input_ids"])
        log_q = logits[counted].double().log_softmax(-1)
        text = log_q.gather(1, batch["labels"][counted][:, None]).sum()
        return 0.5 * (log_q.exp() * (log_q - log_p)).sum() - 0.5 * text

    return {
        "next token": (next_token, plain_next_token),
        "weighted": (weighted, plain_weighted),
        "distilled": (distilled, plain_distilled),
    }


def step(model: Any, batch: Batch, loss_of: LossOf, *, accumulate: bool) -> tuple[float, torch.Tensor]:
    """The loss and this rank's shards of the gradients of two micro-batches."""
    modules, total = fsdp_modules(model), 0.0
    for number in range(MICRO_BATCHES):
        set_micro_batch(modules, last=number == MICRO_BATCHES - 1, reshard=True, sharded=accumulate)
        loss = loss_of(model, {name: values[number::MICRO_BATCHES] for name, values in batch.items()})
        torch.autograd.backward(loss)
        total += loss.item()
    gradient = torch.cat([p.grad.to_local().flatten().double() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    reshard_all(model)
    return total, gradient


def differences(group: Group, case: dict[str, Any]) -> dict[str, list[float]]:
    """Relative differences of loss and gradient."""
    parallel = ParallelConfig.model_validate({"reshard": "always", **case.get("parallel", {})})
    precision = PrecisionConfig.model_validate(case.get("precision", {}))
    options = {}
    if "lora" in case:
        from ropewalk.jobs.training.loop.model_keys import LoraConfig
        from ropewalk.jobs.training.loop.weights.lora import lora_adapter

        options["adapter"] = randomized(lora_adapter(LoraConfig.model_validate(case["lora"]), 0))
    model = sharded(group, case["kind"], parallel, precision, **options)
    batch = {name: values[group.data_rank :: group.data_size] for name, values in batch_of(8).items()}
    if group.data_rank == 1:
        batch["labels"][::MICRO_BATCHES] = IGNORE  # its first micro-batch is a filler
    assert whole_logits_reason(model) is None
    results = {}
    for name, (ours, plain) in pairs_of(group, parallel).items():
        wanted, wanted_gradient = step(model, batch, plain, accumulate=False)
        for accumulate in (False, True):
            loss, gradient = step(model, batch, ours, accumulate=accumulate)
            of_gradient = float((gradient - wanted_gradient).norm() / wanted_gradient.norm())
            results[f"{name}, {accumulate}"] = [abs(loss / wanted - 1), of_gradient]
    return results


def rank_main(rank: int, size: int, port: int, cases: dict[str, dict[str, Any]], folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    head._CHUNK_TOKENS, head._CHUNK_NUMBERS = 5, T
    with process_group(ParallelConfig()) as group:
        results = {name: differences(group, case) for name, case in cases.items()}
    (folder / f"{rank}.json").write_text(json.dumps(results))
