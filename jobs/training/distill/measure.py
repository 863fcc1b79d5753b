"""Evaluation of a distillation: teacher, student before and student after training, on the same held-out sequences."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_atomically
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.distill.recipe import DistillationPlan
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.head import each_token
from ropewalk.jobs.training.loop.losses import cross_entropy
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.source import TokenSource
from ropewalk.jobs.training.loop.tail import Tail, run_tail
from ropewalk.jobs.training.loop.validation import bits_per_byte, by_sequence
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group

# B sequences, T tokens a sequence, R tokens of a chunk, D hidden size, V vocabulary

FOLDER = "distill"  # in the run
SEQUENCES = "sequences.json"
FP32_BYTES = 4
TEACHER, START, STUDENT = "teacher", "student before", "student"


def measure(
    context: JobContext, config: DistillConfig, group: Group, distillation: DistillationPlan, student: nn.Module
) -> dict[str, Any]:
    """Return the table of variants, and the share of the initial loss gap that was recovered; empty without held-out text."""
    loader = distillation.held_out
    if loader is None:
        return {"table": []}
    plan = distillation.recipe.model

    def open_frozen(model_plan: ModelPlan) -> nn.Module:
        return build_model(model_plan, context.run, group, config.parallel, config.precision, trainable=False)

    teacher = open_frozen(distillation.teacher)
    n = loader.sequences
    evaluation = _Evaluation(config=config, group=group, loader=loader, teacher=teacher, n=n)
    sequences: dict[str, torch.Tensor] = {}  # [n, 2]: nats a token, KL from the teacher
    rows: list[dict[str, Any]] = []
    for name in (TEACHER, START, STUDENT):
        model = open_frozen(plan) if name == START else {TEACHER: teacher, STUDENT: student}[name]
        sequences[name] = evaluation.scores(model)
        count = sum(parameter.numel() for parameter in model.parameters())  # shared ones once
        rows.append({"variant": name, **_row(sequences[name], loader), "parameters": count, "bytes": FP32_BYTES * count})
    if group.is_main:
        _keep(context, sequences)
    losses = {name: values[:, 0].mean().item() for name, values in sequences.items()}
    lost, left = losses[START] - losses[TEACHER], losses[STUDENT] - losses[TEACHER]
    return {"table": rows, "recovered": 1 - left / lost if lost > 0 else None, "n": n}


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    """Evaluation on the held-out sequences."""

    config: DistillConfig
    group: Group
    loader: TokenLoader
    teacher: nn.Module
    n: int

    @torch.no_grad()
    def scores(self, model: nn.Module) -> torch.Tensor:
        """Return nats per token of each sequence, and its KL divergence from the teacher, [n, 2]."""
        was_training = model.training
        model.eval()
        source = TokenSource(self.loader, in_order=True)
        micro_batch = self.config.batch.forward_batch
        sums = by_sequence(self._score(model), source, self.group, num_sequences=self.n, micro_batch=micro_batch, values=2)
        reshard_all(model)
        reshard_all(self.teacher)
        model.train(was_training)
        return sums / self.loader.seq_len

    def _score(self, model: nn.Module) -> Callable[[Batch], torch.Tensor]:
        def score(batch: Batch) -> torch.Tensor:
            if model is self.teacher:
                (loss_BT,) = each_token(model, batch, cross_entropy)
                return torch.stack([loss_BT.double().sum(1), torch.zeros(len(loss_BT)).to(loss_BT.device, torch.float64)], 1)

            def use(hidden_BTD: torch.Tensor, tail: Tail) -> list[torch.Tensor]:
                return each_token(model, batch, partial(_loss_and_kl, tail), teacher_hidden=hidden_BTD)

            loss_BT, kl_BT = run_tail(self.teacher, batch, use)  # the model's pass within the teacher's, whose head it needs
            return torch.stack([loss_BT.double().sum(1), kl_BT.double().sum(1)], 1)

        return score


def _loss_and_kl(tail: Tail, logits_RV: torch.Tensor, tokens: Batch) -> list[torch.Tensor]:
    own_RV = logits_RV.float().log_softmax(-1)
    teacher_RV = tail(tokens["teacher_hidden"])[:, : own_RV.shape[1]].float().log_softmax(-1)
    losses_R = -own_RV.gather(1, tokens["labels"][:, None])[:, 0]
    return [losses_R, F.kl_div(own_RV, teacher_RV, reduction="none", log_target=True).sum(-1)]


def _row(values: torch.Tensor, loader: TokenLoader) -> dict[str, Any]:
    """Return means over sequences, each with its standard error."""
    bits = [bits_per_byte(value, loader.bytes_per_token) for value in values[:, 0].tolist()]
    return {
        "loss": values[:, 0].mean().item(),
        "bits_per_byte": math.fsum(bits) / len(bits),
        "standard_error": torch.tensor(bits, dtype=torch.float64).std().item() / math.sqrt(len(bits)) if len(bits) > 1 else None,
        "kl": values[:, 1].mean().item(),
    }


def _keep(context: JobContext, sequences: dict[str, torch.Tensor]) -> None:
    """Write the figures of each sequence, by which two runs are compared."""
    context.fence.check()
    folder = context.run.path / FOLDER
    folder.mkdir(exist_ok=True)
    values = {name: {"loss": of[:, 0].tolist(), "kl": of[:, 1].tolist()} for name, of in sequences.items()}
    write_atomically(folder / SEQUENCES, json.dumps(values).encode())
