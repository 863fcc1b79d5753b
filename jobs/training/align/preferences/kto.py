"""KTO: labelled answers, compared with the KL between model and reference over the whole global batch (2402.01306)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.align.preferences.objective import answer_log_probs, mean_terms, reference_log_probs
from ropewalk.jobs.training.align.preferences.reference import Reference
from ropewalk.jobs.training.align.preferences.source import LabelledSource, Rows
from ropewalk.jobs.training.loop.batch import Batch, num_samples, rows, to_device
from ropewalk.jobs.training.loop.objective import LossTerms, Means, Objective
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.validation import HeldOut
from ropewalk.sharding.batch_plan import BatchPlan
from ropewalk.sharding.config import BatchConfig
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group

# P samples: a labelled answer [:, 0] and an answer of another prompt [:, 1]

_METRICS = (
    *("rewards_chosen", "rewards_rejected", "reward_margin", "reward_accuracy", "logp_chosen", "logp_rejected"),
    *("length_chosen", "length_rejected", "kl"),
)


class Baseline(NamedTuple):
    """Values shared by the samples of a global batch, or of a validation."""

    kl: float  # the estimate of KL(model || reference), at least 0
    desirable: float  # number of desirable answers
    undesirable: float


class KtoObjective:
    """The mean loss over labelled answers. `set_baseline` is called before each step and each validation."""

    metric_names = _METRICS

    def __init__(self, loss: Callable[..., torch.Tensor], beta: float, group: Group) -> None:
        self.loss, self.beta, self.group = loss, beta, group
        self.reference: Reference | None = None  # None: its log-probabilities come with each batch
        self.baseline = Baseline(0.0, 0.0, 0.0)

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        labelled = select_answer(batch, 0)
        base_P = reference_log_probs(self.reference, model, labelled)[:, 0]
        log_probs = answer_log_probs(model, labelled)
        ratios_P, lengths_P, desirable_P = log_probs.sums[:, 0] - base_P, log_probs.lengths[:, 0], batch["desirable"]
        counted_P = lengths_P > 0
        loss_P = self.loss(ratios_P, desirable_P, ratios_P.new_tensor(self.baseline.kl))
        metrics = self._metrics(counted_P, desirable_P, ratios_P.detach(), log_probs.sums[:, 0].detach(), lengths_P)
        return LossTerms(torch.where(counted_P, loss_P, 0.0).sum(), counted_P.sum(), metrics)

    def _metrics(
        self,
        counted_P: torch.Tensor,
        desirable_P: torch.Tensor,
        ratios_P: torch.Tensor,
        log_probs_P: torch.Tensor,
        lengths_P: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        kl, good, bad = self.baseline
        rewards_P = self.beta * ratios_P
        right_P = torch.where(desirable_P, ratios_P > kl, ratios_P < kl)
        # the difference of two means as one mean: answers are weighted by the inverse share of their kind in the global batch
        shares_P = torch.where(desirable_P, (good + bad) / good if good else 0.0, -(good + bad) / bad if bad else 0.0)
        kinds = {"chosen": counted_P & desirable_P, "rejected": counted_P & ~desirable_P}
        values = {"rewards": rewards_P, "logp": log_probs_P, "length": lengths_P}
        return {
            **{f"{name}_{kind}": mean_terms(of_P, which_P) for kind, which_P in kinds.items() for name, of_P in values.items()},
            "reward_margin": mean_terms(rewards_P * shares_P, counted_P if good and bad else counted_P & False),
            "reward_accuracy": mean_terms(right_P, counted_P),
            "kl": mean_terms(torch.full_like(rewards_P, kl), counted_P),
        }

    @torch.no_grad()
    def set_baseline(self, model: nn.Module, batches: Sequence[Batch], filler: Batch) -> None:
        """Estimate the baseline from the micro-batches of all ranks; an empty one computes the filler, to match collectives."""
        device = self.group.device
        sums = torch.zeros(4, dtype=torch.float64, device=device)  # log-ratios, samples, desirable, undesirable
        was_training = model.training
        model.eval()
        for batch in batches:
            has_samples = num_samples(batch) > 0
            terms = self._baseline_terms(model, to_device(batch if has_samples else filler, device))
            sums += terms if has_samples else 0.0
        reshard_all(model)
        model.train(was_training)
        total, count, good, bad = self.group.sum_over_data(sums).tolist()
        self.baseline = Baseline(max(0.0, total / count) if count else 0.0, good, bad)

    def _baseline_terms(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        other = select_answer(batch, 1)
        base_P = reference_log_probs(self.reference, model, other)[:, 0]
        ratios_P = answer_log_probs(model, other).sums[:, 0] - base_P
        desirable_P = batch["desirable"]
        sums = (ratios_P.sum(), torch.tensor(len(ratios_P)), desirable_P.sum(), (~desirable_P).sum())
        return torch.stack([value.to(ratios_P.device, torch.float64) for value in sums])


def select_answer(batch: Batch, answer: int) -> Batch:
    """Return a batch with one of the answers of each sample, [B, 1, T]."""
    chosen = {name: batch[name][:, answer : answer + 1] for name in ("input_ids", "labels")}
    return {**chosen, **({"reference": batch["reference"][:, answer : answer + 1]} if "reference" in batch else {})}


class KtoSource(LabelledSource):
    """Labelled answers to train on; the baseline of each global batch is computed before any of its gradients."""

    def __init__(self, rows: Rows, objective: KtoObjective, batch: BatchConfig, **keywords: Any) -> None:
        super().__init__(rows, **keywords)
        self.objective, group = objective, objective.group
        self._plan = BatchPlan.of(batch, group)

    def prepare(self, state: TrainState) -> None:
        positions = self._plan.samples(state.progress.position)
        batch = self.read(positions)
        micro_batches = [rows(batch, which) for which in self._plan.micro_batches(len(positions))]
        self.objective.set_baseline(state.model, micro_batches, self.filler())


class KtoHeldOut(HeldOut):
    """Held-out labelled answers; their baseline is computed first. Micro-batches do not depend on the number of ranks."""

    def score(self, state: TrainState, objective: Objective, limit: int) -> Means:
        assert isinstance(objective, KtoObjective)
        num_samples, size, batches = min(self.source.epoch_samples or limit, limit), self.group.data_size, []
        for turn in range(math.ceil(math.ceil(num_samples / self.micro_batch) / size)):
            start = (turn * size + self.group.data_rank) * self.micro_batch
            batches.append(self.source.read(range(start, min(start + self.micro_batch, num_samples))))
        objective.set_baseline(state.model, batches, self.source.filler())
        return super().score(state, objective, limit)
