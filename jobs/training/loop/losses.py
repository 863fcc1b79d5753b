"""Log-probabilities of labels, the cross entropy and z-loss, in the memory of the logits."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.sharding.placement import local_pieces

# N labels, V vocabulary, or the columns of it that this rank has

Function = TypeVar("Function", bound=Callable[..., Any])


class _LabelLogProbabilities(torch.autograd.Function):
    """The log-probability of each label, and log Z, the logarithm of the sum of exponentials of all logits.

    The gradient, one-hot minus softmax (of log Z: softmax), is computed in the memory of the logits. With `shards`, a rank has
    the columns of the logits from its `first` on: the largest, the sums and the labels' logits are reduced over the ranks.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NV: torch.Tensor, labels_N: torch.Tensor, shards: ProcessGroup | None, first: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        largest_N = logits_NV.amax(dim=1)
        if shards is not None:
            dist.all_reduce(largest_N, dist.ReduceOp.MAX, group=shards)
        logits_NV.sub_(largest_N[:, None])
        columns_N = (labels_N - first).clamp(0, logits_NV.shape[1] - 1)
        ctx.held_N = None if shards is None else columns_N == labels_N - first
        label_N = logits_NV.gather(1, columns_N[:, None])[:, 0]  # a copy, of the shifted logit
        sums_N = logits_NV.exp_().sum(dim=1)
        if shards is not None:
            both_2N = torch.stack([label_N.where(ctx.held_N, 0.0), sums_N])
            dist.all_reduce(both_2N, group=shards)
            label_N, sums_N = both_2N
        ctx.exponentials_NV, ctx.sums_N, ctx.columns_N = logits_NV, sums_N, columns_N
        log_sums_N = sums_N.log()
        return label_N - log_sums_N, largest_N + log_sums_N

    @staticmethod
    def backward(ctx: Any, label_N: torch.Tensor | None, log_z_N: torch.Tensor | None) -> tuple[torch.Tensor, None, None, None]:
        assert label_N is not None, "the log-probability is part of every loss"
        gradient_NV, ctx.exponentials_NV = ctx.exponentials_NV, None
        softmax_N = -label_N if log_z_N is None else log_z_N - label_N
        gradient_NV.div_((ctx.sums_N / softmax_N)[:, None])  # divides by infinity where the gradient is zero
        of_label_N = label_N if ctx.held_N is None else label_N.where(ctx.held_N, 0.0)
        return gradient_NV.scatter_add_(1, ctx.columns_N[:, None], of_label_N[:, None]), None, None, None


def label_log_probabilities(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return log p(label) in nats, [N]. May overwrite the logits: do not use them again. Take the gradient once.

    Logits may be a DTensor that is divided by columns.
    """
    return _log_probabilities(logits_NV, labels_N)[0]


def _log_probabilities(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shards, first = None, 0
    if isinstance(logits_NV, DTensor):
        (box,) = local_pieces(logits_NV)
        shards, first = logits_NV.device_mesh.get_group(), box.start[1]
        logits_NV = logits_NV.to_local()
    log_probs_N, log_z_N = _LabelLogProbabilities.apply(own_logits(logits_NV), labels_N, shards, first)  # type: ignore[no-untyped-call]
    return log_probs_N, log_z_N


def own_logits(logits_NV: torch.Tensor) -> torch.Tensor:
    """Return logits in fp32 or fp64 that may be overwritten: a copy only where backward needs the values."""
    logits = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    needed = logits is logits_NV and torch.is_grad_enabled() and not is_free(logits_NV)
    return logits_NV.clone() if needed else logits


def divided(function: Function) -> Function:
    """Mark a function for `sum_over_tokens` or `each_token` that takes a DTensor of logits divided by columns."""
    function.divided = True  # type: ignore[attr-defined]
    return function


@divided
def log_probability(logits_RV: torch.Tensor, tokens: Batch) -> Sequence[torch.Tensor]:
    """Return log p(label) of each token in nats: a function for `each_token`."""
    return [label_log_probabilities(logits_RV, tokens["labels"])]


@divided
def cross_entropy(logits_RV: torch.Tensor, tokens: Batch) -> Sequence[torch.Tensor]:
    """Return the cross entropy of each token in nats: a function for `sum_over_tokens`."""
    return [-label_log_probabilities(logits_RV, tokens["labels"])]


def regularized_cross_entropy(z_loss: float) -> Callable[[torch.Tensor, Batch], Sequence[torch.Tensor]]:
    """Return a function for `sum_over_tokens`: the cross entropy of each token in nats, and log Z.

    The value of the first is the cross entropy alone; its gradient is that of cross entropy + z_loss · (log Z)².
    """

    @divided
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
    while function is not None and ("View" in function.name() or function.name() == "_ToTorchTensorBackward"):
        function = function.next_functions[0][0]
    return function is not None and function.name() in {"MmBackward0", "AddmmBackward0", "_LinearBackward"}
