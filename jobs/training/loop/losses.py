"""Log-probabilities of labels and the cross entropy, in the memory of the logits."""

from collections.abc import Sequence
from typing import Any

import torch

from ropewalk.jobs.training.loop.batch import Batch

# N labels, V vocabulary


class _LabelLogProbabilities(torch.autograd.Function):
    """The log-probability of each label; its gradient, one-hot minus softmax, is computed in the memory of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        logits_NV.sub_(logits_NV.amax(dim=1, keepdim=True))
        label_N = logits_NV.gather(1, labels_N[:, None])[:, 0]  # a copy, of the shifted logit
        sums_N = logits_NV.exp_().sum(dim=1)
        ctx.exponentials_NV, ctx.sums_N, ctx.labels_N = logits_NV, sums_N, labels_N
        return label_N - sums_N.log()

    @staticmethod
    def backward(ctx: Any, gradient_N: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient_NV, ctx.exponentials_NV = ctx.exponentials_NV, None
        gradient_NV.div_((ctx.sums_N / -gradient_N)[:, None])  # divides by infinity where the gradient is zero
        return gradient_NV.scatter_add_(1, ctx.labels_N[:, None], gradient_N[:, None]), None


def label_log_probabilities(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return log p(label) in nats, [N]. May overwrite the logits: do not use them again. Take the gradient once."""
    log_probs_N: torch.Tensor = _LabelLogProbabilities.apply(own_logits(logits_NV), labels_N)  # type: ignore[no-untyped-call]
    return log_probs_N


def own_logits(logits_NV: torch.Tensor) -> torch.Tensor:
    """Return logits in fp32 or fp64 that may be overwritten: a copy only where backward needs the values."""
    logits = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    needed = logits is logits_NV and torch.is_grad_enabled() and not is_free(logits_NV)
    return logits_NV.clone() if needed else logits


def log_probability(logits_RV: torch.Tensor, tokens: Batch) -> Sequence[torch.Tensor]:
    """Return log p(label) of each token in nats: a function for `each_token`."""
    return [label_log_probabilities(logits_RV, tokens["labels"])]


def cross_entropy(logits_RV: torch.Tensor, tokens: Batch) -> Sequence[torch.Tensor]:
    """Return the cross entropy of each token in nats: a function for `sum_over_tokens`."""
    return [-label_log_probabilities(logits_RV, tokens["labels"])]


def is_free(tensor: torch.Tensor) -> bool:
    """Return True if no backward function needs these values: they are the output of a matrix product, through views alone.

    A soft-capped head (tanh) does need its output.
    """
    function = tensor.grad_fn
    while function is not None and "View" in function.name():
        function = function.next_functions[0][0]
    return function is not None and function.name() in {"MmBackward0", "AddmmBackward0", "_LinearBackward"}
