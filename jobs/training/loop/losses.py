"""Cross entropy and log-probabilities that overwrite the logits with their own gradient, to save memory."""

import math
from typing import Any

import torch

from ropewalk.jobs.training.loop.batch import IGNORE

# N labels, V vocabulary


class _SummedCrossEntropy(torch.autograd.Function):
    """F.cross_entropy(reduction="sum") with the gradient computed in the forward pass, in the memory of the logits.

    torch keeps the logits, their log-softmax and two gradients of that size; this takes a third of the time on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        ignored_N = labels_N == IGNORE
        targets_N = labels_N.masked_fill(ignored_N, 0)
        losses_N = _softmax_in_place(logits_NV, targets_N, ignored_N)
        logits_NV.scatter_add_(1, targets_N[:, None], (ignored_N.to(logits_NV.dtype) - 1.0)[:, None])
        ctx.gradient_NV = logits_NV
        return losses_N.sum()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        # nearly always one, since the step divides by the global weight later; reading it on a GPU would synchronize
        return (gradient_NV if not scale.is_cuda and scale == 1.0 else gradient_NV.mul_(scale)), None


def _softmax_in_place(logits_NV: torch.Tensor, targets_N: torch.Tensor, ignored_N: torch.Tensor) -> torch.Tensor:
    """Overwrite logits with probabilities (zeros where ignored); returns each label's negative log-likelihood in nats."""
    logits_NV.sub_(logits_NV.amax(dim=1, keepdim=True))
    target_N = logits_NV.gather(1, targets_N[:, None])[:, 0]  # a copy, of the shifted logit
    sums_N = logits_NV.exp_().sum(dim=1).masked_fill_(ignored_N, math.inf)
    logits_NV.div_(sums_N[:, None])
    return (sums_N.log() - target_N).masked_fill_(ignored_N, 0.0)


def summed_cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return the summed -log p(label) in nats of labels that are not IGNORE. May overwrite the logits: do not use them again."""
    logits = logits_NV.float()
    if logits is logits_NV and not is_free(logits_NV):
        logits = logits_NV.clone()
    loss: torch.Tensor = _SummedCrossEntropy.apply(logits, labels_N)  # type: ignore[no-untyped-call]
    return loss


def is_free(tensor: torch.Tensor) -> bool:
    """Return True if no backward function needs these values: they are the output of a matrix product, through views alone.

    A soft-capped head (tanh) does need its output.
    """
    function = tensor.grad_fn
    while function is not None and "View" in function.name():
        function = function.next_functions[0][0]
    return function is not None and function.name() in {"MmBackward0", "AddmmBackward0"}


class _LabelLogProbabilities(torch.autograd.Function):
    """The log-probability of each label; its gradient, one-hot minus softmax, is computed in the memory of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        ignored_N = labels_N == IGNORE
        targets_N = labels_N.masked_fill(ignored_N, 0)
        losses_N = _softmax_in_place(logits_NV, targets_N, ignored_N)
        ctx.softmax_NV, ctx.targets_N, ctx.counted_N = logits_NV, targets_N, ~ignored_N
        return losses_N.neg_()

    @staticmethod
    def backward(ctx: Any, gradient_N: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient_NV, ctx.softmax_NV = ctx.softmax_NV, None
        scale_N = gradient_N * ctx.counted_N
        gradient_NV.mul_(-scale_N[:, None])
        return gradient_NV.scatter_add_(1, ctx.targets_N[:, None], scale_N[:, None]), None


def label_log_probabilities(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return log p(label) in nats, [N]; 0 for IGNORE. May overwrite the logits: do not use them again. Take the gradient once."""
    logits = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    if logits is logits_NV and torch.is_grad_enabled() and not is_free(logits_NV):
        logits = logits_NV.clone()
    log_probs_N: torch.Tensor = _LabelLogProbabilities.apply(logits, labels_N)  # type: ignore[no-untyped-call]
    return log_probs_N
