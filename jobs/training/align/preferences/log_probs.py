"""Log-probabilities of answers, for the trained model or any other."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.losses import label_log_probabilities
from ropewalk.jobs.training.loop.objective import logits_of

# B samples, A answers a sample, S = B*A sequences, T tokens, K tokens from the first label on, V vocabulary


class LogProbs(NamedTuple):
    """Log-probabilities and lengths of the answers of a batch."""

    sums: torch.Tensor  # [B, A], nats, over the answer's tokens, in float64; 0 for an answer without labels
    lengths: torch.Tensor  # [B, A], tokens that have a label


def sequences(batch: Batch) -> Batch:
    """Return the answers of a batch as sequences, [S, T], without trailing columns of padding."""
    inputs, labels = batch["input_ids"], batch["labels"]
    used_T = (labels != IGNORE).flatten(0, -2).any(0)
    length = max(1, int(used_T.nonzero().max()) + 1) if used_T.any() else 1
    return {"input_ids": inputs[..., :length].flatten(0, -2), "labels": labels[..., :length].flatten(0, -2)}


def answer_log_probs(model: nn.Module, batch: Batch) -> LogProbs:
    """Compute log p(answer | prompt) of each answer, and its length."""
    flat = sequences(batch)
    labels_ST = flat["labels"]
    first = _first_label(labels_ST) if _keeps_logits(model) else 0
    inputs: dict[str, Any] = {"input_ids": flat["input_ids"]}
    if first:
        inputs["logits_to_keep"] = labels_ST.shape[1] - first
    labels_SK = labels_ST[:, first:]
    logits_SKV = logits_of(model, inputs)
    log_probs_SK = label_log_probabilities(logits_SKV.flatten(0, 1), labels_SK.flatten()).view(labels_SK.shape)
    shape = batch["labels"].shape[:-1]
    return LogProbs(log_probs_SK.double().sum(-1).view(shape), (labels_SK != IGNORE).sum(-1).view(shape))


def _first_label(labels_ST: torch.Tensor) -> int:
    """Return the first column with a counted label; the head need not be computed before it."""
    used_T = (labels_ST != IGNORE).any(0)
    return int(used_T.nonzero().min()) if used_T.any() else 0


def _keeps_logits(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
