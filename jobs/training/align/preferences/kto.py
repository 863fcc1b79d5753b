"""KTO: labelled answers, each compared with the KL between model and reference over the whole global batch (2402.01306)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.preferences.log_probs import answer_log_probs
from ropewalk.jobs.training.align.preferences.losses import kto
from ropewalk.jobs.training.align.preferences.objective import mean_terms, reference_log_probs
from ropewalk.jobs.training.align.preferences.reference import Reference
from ropewalk.jobs.training.loop.batch import Batch, to_device
from ropewalk.jobs.training.loop.objective import LossTerms
from ropewalk.jobs.training.loop.source import Source
from ropewalk.jobs.training.loop.state import TrainState
from ropewalk.sharding.batch_plan import BatchPlan
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group

# P samples: a labelled answer [:, 0] and an answer of another prompt [:, 1]

_METRICS = (
    *("rewards_chosen", "rewards_rejected", "reward_margin", "reward_accuracy", "logp_chosen", "logp_rejected"),
    *("length_chosen", "length_rejected", "kl"),
)


class Baseline(NamedTuple):
    """What the samples of a global batch, or of the validation, have in common."""

    kl: float  # the estimate of KL(model || reference), at least 0
    desirable: float  # how many of them are
    undesirable: float


class KtoObjective:
    """The mean loss over labelled answers. `baseline` is set before each step and each validation, by all ranks together."""

    metric_names = _METRICS

    def __init__(self, config: AlignConfig, reference: Reference | None) -> None:
        self.beta, self.reference = config.strength, reference
        self.weights = (config.desirable_weight, config.undesirable_weight)
        self.baseline = Baseline(0.0, 0.0, 0.0)

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Summed loss of the labelled answers, and their number."""
        mine = only(batch, 0)
        base_P = reference_log_probs(self.reference, model, mine)[:, 0]
        found = answer_log_probs(model, mine)
        ratios_P, lengths_P, desirable_P = found.sums[:, 0] - base_P, found.lengths[:, 0], batch["desirable"]
        counted_P = lengths_P > 0
        loss_P = kto(ratios_P, desirable_P, ratios_P.new_tensor(self.baseline.kl), self.beta, self.weights)
        metrics = self._metrics(counted_P, desirable_P, ratios_P.detach(), found.sums[:, 0].detach(), lengths_P)
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
        # the difference of two means, as one mean: each answer is weighed by how rare its kind is in the global batch
        shares_P = torch.where(desirable_P, (good + bad) / good if good else 0.0, -(good + bad) / bad if bad else 0.0)
        kinds = {"chosen": counted_P & desirable_P, "rejected": counted_P & ~desirable_P}
        values = {"rewards": rewards_P, "logp": log_probs_P, "length": lengths_P}
        return {
            **{f"{name}_{kind}": mean_terms(of_P, which_P) for kind, which_P in kinds.items() for name, of_P in values.items()},
            "reward_margin": mean_terms(rewards_P * shares_P, counted_P if good and bad else counted_P & False),
            "reward_accuracy": mean_terms(right_P, counted_P),
            "kl": mean_terms(torch.full_like(rewards_P, kl), counted_P),
        }


def only(batch: Batch, answer: int) -> Batch:
    """A batch with one of the answers of each sample, [B, 1, T]."""
    chosen = {name: batch[name][:, answer : answer + 1] for name in ("input_ids", "labels")}
    return {**chosen, **({"reference": batch["reference"][:, answer : answer + 1]} if "reference" in batch else {})}


class KtoBaseline:
    """Finds the baseline of a global batch before any of its gradients: a mean over all of it, at any number of ranks."""

    def __init__(self, config: AlignConfig, group: Group, source: Source, validation: Source | None) -> None:
        self.config, self.group, self.source, self.validation = config, group, source, validation
        self.objective: KtoObjective | None = None  # set where it is built
        self._plan = BatchPlan(
            global_batch=config.batch.global_batch,
            micro_batch=config.batch.micro_batch,
            data_size=group.data_size,
            data_rank=group.data_rank,
        )

    def before_step(self, state: TrainState) -> None:
        """Of the batch that is learnt next."""
        positions = self._plan.samples(state.progress.position)
        batch = self.source.read(positions)
        pieces = self._plan.micro_batches(len(positions))
        self._set(state.model, [{name: tensor[piece] for name, tensor in batch.items()} for piece in pieces], self.source)

    def before_validation(self, state: TrainState, num_samples: int) -> None:
        """Of the samples that are scored next; the micro-batches do not depend on the number of ranks."""
        assert self.validation is not None
        size, micro = self.group.data_size, self._plan.micro_batch
        batches = []
        for turn in range(math.ceil(math.ceil(num_samples / micro) / size)):
            start = (turn * size + self.group.data_rank) * micro
            batches.append(self.validation.read(range(start, min(start + micro, num_samples))))
        self._set(state.model, batches, self.validation)

    @torch.no_grad()
    def _set(self, model: nn.Module, batches: Sequence[Batch], source: Source) -> None:
        """Micro-batches without a sample are computed as a filler, for collectives must match."""
        assert self.objective is not None
        device = self.group.device
        sums = torch.zeros(4, dtype=torch.float64, device=device)  # log-ratios, samples, desirable, undesirable
        was_training = model.training
        model.eval()
        for batch in batches:
            there = len(batch["labels"]) > 0
            terms = self._terms(model, to_device(batch if there else source.filler(), device))
            sums += terms if there else 0.0
        reshard_all(model)
        model.train(was_training)
        total, count, good, bad = self.group.sum_over_data(sums).tolist()
        self.objective.baseline = Baseline(max(0.0, total / count) if count else 0.0, good, bad)

    def _terms(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        assert self.objective is not None
        other = only(batch, 1)
        base_P = reference_log_probs(self.objective.reference, model, other)[:, 0]
        ratios_P = answer_log_probs(model, other).sums[:, 0] - base_P
        desirable_P = batch["desirable"]
        sums = (ratios_P.sum(), torch.tensor(len(ratios_P)), desirable_P.sum(), (~desirable_P).sum())
        return torch.stack([value.to(ratios_P.device, torch.float64) for value in sums])


Build = Callable[[nn.Module, Group], KtoObjective]
