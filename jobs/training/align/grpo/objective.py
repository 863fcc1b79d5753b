"""The loss of GRPO, Dr.GRPO, DAPO and GSPO, as sums over the answers of a batch."""

from collections.abc import Sequence

import torch
from torch import nn

from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.align.preferences.reference import Reference
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.head import each_token
from ropewalk.jobs.training.loop.losses import log_probability
from ropewalk.jobs.training.loop.objective import LossTerms

# B answers, T tokens of a row, N counted tokens of all answers, R rewards or tokens of a chunk, V vocabulary

METRICS = (
    *("reward", "importance_ratio", "off_policy_fraction", "clipped_fraction"),
    *("answer_tokens", "truncated_fraction", "staleness"),
)
FAR = 0.1  # a ratio that differs from 1 by more counts as off-policy


class GroupRelative:
    """Policy gradient with advantages relative to the group of a prompt.

    A batch has `input_ids` and `labels` [B, T] (the answer's tokens; shifted), `old_log_probs` [B, T] of the generating policy,
    and for each answer [B]: `advantage`, `learns` (False: it does not count), `reward` and `truncated`, and `rewards` [B, R].
    """

    def __init__(self, config: GrpoConfig, reference: Reference | None = None) -> None:
        self._config, self._keys, self._reference = config, config.keys, reference
        labels = [reward.label for reward in config.rewards]
        self._rewards = [f"reward/{name}" for name in labels] if len(set(labels)) == len(labels) else []
        self.metric_names: Sequence[str] = (*METRICS, *self._rewards, *(("kl",) if reference is not None else ()))

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Compute the terms of a micro-batch; answers that do not learn are not counted."""
        batch = _trim(batch)
        learns_B = batch["learns"]
        counted_BT = (batch["labels"] != IGNORE) & learns_B[:, None]
        if self._keys.mask_truncated:
            counted_BT &= ~batch["truncated"][:, None]
        row_N = counted_BT.nonzero()[:, 0]
        log_prob_N = self._log_probs(model, batch, counted_BT)
        log_ratio_N = log_prob_N - batch["old_log_probs"][counted_BT]
        tokens_B = counted_BT.sum(1)
        if self._keys.ratio == "sequence":
            log_ratio_N = _mean_of_rows(log_ratio_N, row_N, tokens_B)[row_N]
        raw_N = log_ratio_N.exp()
        advantage_N = batch["advantage"][row_N]
        loss_N, clipped_N = self._clipped(raw_N, advantage_N)
        metrics = self._metrics(batch, raw_N, clipped_N)
        if self._reference is not None:
            with torch.no_grad():
                reference_N = self._reference(model, lambda reference: self._log_probs(reference, batch, counted_BT))
            kl_N = k3(reference_N - log_prob_N)
            loss_N = loss_N + self._config.kl * kl_N
            metrics["kl"] = _pair(kl_N)
        if self._keys.average == "sequence":
            loss_N = loss_N / tokens_B[row_N]
        weight = {"sequence": learns_B.sum(), "token": counted_BT.sum(), "constant": learns_B.sum() * self._config.max_new_tokens}
        return LossTerms(loss_N.sum(), weight[self._keys.average], metrics)

    def _log_probs(self, model: nn.Module, batch: Batch, counted_BT: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities [N] of the labels that count, at the sampling temperature."""
        counted = {"input_ids": batch["input_ids"], "labels": batch["labels"].where(counted_BT, IGNORE)}
        (log_prob_BT,) = each_token(model, counted, self._log_probability)
        return log_prob_BT[counted_BT]

    def _log_probability(self, logits_RV: torch.Tensor, tokens: Batch) -> Sequence[torch.Tensor]:
        return log_probability(logits_RV.float() / self._config.temperature, tokens)

    def _clipped(self, ratio_N: torch.Tensor, advantage_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return PPO's clipped loss, and where the clip applies. Ratios of stale answers are truncated, which bounds the loss."""
        if self._config.max_staleness:
            ratio_N = ratio_N.clamp(max=self._config.max_ratio)
        bounded_N = ratio_N.clamp(1 - self._keys.clip_low, 1 + self._keys.clip_high)
        free_N, clipped_N = ratio_N * advantage_N, bounded_N * advantage_N
        return -torch.minimum(free_N, clipped_N), clipped_N < free_N

    def _metrics(self, batch: Batch, raw_N: torch.Tensor, clipped_N: torch.Tensor) -> dict[str, torch.Tensor]:
        learns_B = batch["learns"]
        metrics = {
            "reward": _pair(batch["reward"][learns_B]),
            "importance_ratio": _pair(raw_N),
            "off_policy_fraction": _pair((raw_N - 1).abs() > FAR),
            "clipped_fraction": _pair(clipped_N),
            "answer_tokens": _pair((batch["labels"] != IGNORE).sum(1)[learns_B]),
            "truncated_fraction": _pair(batch["truncated"][learns_B]),
            "staleness": _pair(batch["staleness"][learns_B]),
        }
        for name, values_B in zip(self._rewards, batch["rewards"].unbind(1) if self._rewards else (), strict=True):
            metrics[name] = _pair(values_B[learns_B & ~values_B.isnan()])
        return metrics


def k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """Schulman's unbiased, never negative estimate of KL(policy || reference), of log(reference / policy)."""
    return log_ratio.exp() - log_ratio - 1


def _pair(values: torch.Tensor) -> torch.Tensor:
    """Return sum and count of a metric."""
    values = values.detach().double()
    return torch.stack([values.sum(), torch.full_like(values.sum(), values.numel())])


def _mean_of_rows(values_N: torch.Tensor, row_N: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
    sums_B = values_N.new_zeros(len(tokens_B)).index_add(0, row_N, values_N)
    return sums_B / tokens_B.clamp(min=1)


def _trim(batch: Batch) -> Batch:
    """Drop the columns after the last label of any row, which are padding."""
    columns = (batch["labels"] != IGNORE).any(0).nonzero()
    length = int(columns[-1]) + 1 if len(columns) else 1
    return {
        name: tensor[:, :length] if name in {"input_ids", "labels", "old_log_probs"} else tensor for name, tensor in batch.items()
    }
