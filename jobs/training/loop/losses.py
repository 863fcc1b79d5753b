"""Log-probabilities of labels, the cross entropy and z-loss, in the memory of the logits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ropewalk.jobs.training.loop.batch import Batch

# N labels, V vocabulary


class _LabelLogProbabilities(torch.autograd.Function):
    """The log-probability of each label, and log Z, the logarithm of the sum of exponentials of all logits.

    The gradient, one-hot minus softmax (of log Z: softmax), is computed in the memory of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, labels_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        largest_N = logits_NV.amax(dim=1)
        logits_NV.sub_(largest_N[:, None])
        label_N = logits_NV.gather(1, labels_N[:, None])[:, 0]  # a copy, of the shifted logit
        sums_N = logits_NV.exp_().sum(dim=1)
        ctx.exponentials_NV, ctx.sums_N, ctx.labels_N = logits_NV, sums_N, labels_N
        log_sums_N = sums_N.log()
        return label_N - log_sums_N, largest_N + log_sums_N

    @staticmethod
    def backward(ctx: Any, label_N: torch.Tensor | None, log_z_N: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        assert label_N is not None, "the log-probability is part of every loss"
        gradient_NV, ctx.exponentials_NV = ctx.exponentials_NV, None
        softmax_N = -label_N if log_z_N is None else log_z_N - label_N
        gradient_NV.div_((ctx.sums_N / softmax_N)[:, None])  # divides by infinity where the gradient is zero
        return gradient_NV.scatter_add_(1, ctx.labels_N[:, None], label_N[:, None]), None


def label_log_probabilities(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return log p(label) in nats, [N]. May overwrite the logits: do not use them again. Take the gradient once."""
    return _log_probabilities(logits_NV, labels_N)[0]


def _log_probabilities(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs_N, log_z_N = _LabelLogProbabilities.apply(own_logits(logits_NV), labels_N)  # type: ignore[no-untyped-call]
    return log_probs_N, log_z_N


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


def regularized_cross_entropy(z_loss: float) -> Callable[[torch.Tensor, Batch], Sequence[torch.Tensor]]:
    """Return a function for `sum_over_tokens`: the cross entropy of each token in nats, and log Z.

    The value of the first is the cross entropy alone; its gradient is that of cross entropy + z_loss · (log Z)².
    """

    def function(logits_RV: torch.Tensor, tokens: Batch) -> Sequence[torch.Tensor]:
        log_probs_R, log_z_R = _log_probabilities(logits_RV, tokens["labels"])
        penalty_R = z_loss * log_z_R.square()
        return [-log_probs_R + (penalty_R - penalty_R.detach()), log_z_R]

    return function


def is_free(tensor: torch.Tensor) -> bool:
    """Return True if no backward function needs these values: they are the output of a matrix product, through views alone.

    A soft-capped head (tanh) does need its output.
    """
    function = tensor.grad_fn
    while function is not None and "View" in function.name():
        function = function.next_functions[0][0]
    return function is not None and function.name() in {"MmBackward0", "AddmmBackward0", "_LinearBackward"}
