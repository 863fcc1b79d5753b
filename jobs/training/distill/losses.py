"""Divergences of a student from its teacher, chunk by chunk, that overwrite the student's logits with their gradient.

The loss of a token is alpha · cross entropy + (1 - alpha) · T² · D(teacher, student), of distributions at the temperature T
(Hinton et al., 1503.02531: T² preserves the gradient's size). D is the forward or reverse KL divergence, or the generalized
Jensen-Shannon divergence (GKD, 2306.13649): beta · KL(teacher | M) + (1 - beta) · KL(student | M), where M is beta · teacher +
(1 - beta) · student.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.head import sum_over_tokens
from ropewalk.jobs.training.loop.losses import cross_entropy, own_logits
from ropewalk.jobs.training.loop.objective import LossTerms
from ropewalk.jobs.training.loop.tail import Tail, run_tail

# B samples, T tokens a sample, N tokens, R rows of a part of them, D hidden size, V vocabulary, K tokens of a sparse teacher

IDS, PROBABILITIES, ENTROPY = "teacher_ids", "teacher_probabilities", "teacher_entropy"  # keys of a batch with cached logits
_TEACHER_HIDDEN = "teacher_hidden"
_PART_NUMBERS = 1 << 22  # logits processed at once: no other tensor of the size [N, V] is allocated


class Mix(NamedTuple):
    """The components of the loss and their weights."""

    divergence: str  # forward_kl | reverse_kl | jensen_shannon
    beta: float
    temperature: float
    alpha: float  # weight of cross entropy with the text


class SparseTeacher(NamedTuple):
    """A teacher with known probabilities of a few tokens; the others count as 0."""

    ids: torch.Tensor  # [N, K], each token once per row; arbitrary where the probability is 0
    probabilities: torch.Tensor  # [N, K]
    entropy: torch.Tensor  # [N], nats, of the whole distribution


def divergence_of(mix: Mix, teacher_RV: torch.Tensor, student_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return D of each row, [R], and its gradient by the student's logits, [R, V]; arguments are logits at temperature 1."""
    log_p, log_q = teacher_RV.log_softmax(-1), student_RV.log_softmax(-1)
    q = log_q.exp()
    if mix.divergence == "forward_kl":
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(-1), q - p
    if mix.divergence == "reverse_kl":
        ratio = log_q - log_p
        kl = (q * ratio).sum(-1)
        return kl, q * (ratio - kl[:, None])
    beta = mix.beta
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    ratio = log_q - log_m
    of_student = (q * ratio).sum(-1)
    of_teacher = (log_p.exp() * (log_p - log_m)).sum(-1)
    return beta * of_teacher + (1 - beta) * of_student, (1 - beta) * q * (ratio - of_student[:, None])


def sparse_divergence_of(teacher: SparseTeacher, student_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the forward KL from a sparse teacher, and its gradient, like `divergence_of`.

    Unbiased if the teacher's probabilities are, since it is linear in them.
    """
    log_q = student_RV.log_softmax(-1)
    p_RK = teacher.probabilities.to(log_q.dtype)
    cross_R = -(p_RK * log_q.gather(1, teacher.ids)).sum(-1)
    gradient_RV = log_q.exp_().mul_(p_RK.sum(-1, keepdim=True))
    gradient_RV.scatter_add_(1, teacher.ids, -p_RK)
    return cross_R - teacher.entropy.to(p_RK.dtype), gradient_RV


class _Distillation(torch.autograd.Function):
    """The loss of each token, with its gradient computed in the forward pass in the memory of the student's logits."""

    @staticmethod
    def forward(
        ctx: Any, student_NV: torch.Tensor, teacher: torch.Tensor | SparseTeacher, labels_N: torch.Tensor, mix: Mix
    ) -> tuple[torch.Tensor, ...]:
        rows, terms = max(1, _PART_NUMBERS // student_NV.shape[1]), []
        for start in range(0, len(labels_N), rows):
            part = slice(start, start + rows)
            chosen = teacher[part] if isinstance(teacher, torch.Tensor) else SparseTeacher(*(each[part] for each in teacher))
            terms_3R, student_NV[part] = _part(student_NV[part], chosen, labels_N[part], mix)
            terms.append(terms_3R)
        ctx.gradient_NV = student_NV
        loss_N, divergence_N, cross_entropy_N = torch.cat(terms, 1)
        ctx.mark_non_differentiable(divergence_N, cross_entropy_N)
        return loss_N, divergence_N, cross_entropy_N

    @staticmethod
    def backward(ctx: Any, scale_N: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        return gradient_NV.mul_(scale_N[:, None]), None, None, None


def _part(
    student_RV: torch.Tensor, teacher: torch.Tensor | SparseTeacher, labels_R: torch.Tensor, mix: Mix
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss, divergence and cross entropy of each row, [3, R], and the loss's gradient, [R, V]."""
    labels_R1, t = labels_R[:, None], mix.temperature
    scaled_RV = student_RV / t if t != 1.0 else student_RV
    if isinstance(teacher, SparseTeacher):
        divergence_R, gradient_RV = sparse_divergence_of(teacher, scaled_RV)
    else:
        of_teacher_RV = teacher.to(student_RV.dtype)
        divergence_R, gradient_RV = divergence_of(mix, of_teacher_RV / t if t != 1.0 else of_teacher_RV, scaled_RV)
    gradient_RV.mul_((1 - mix.alpha) * t)
    log_q_RV = student_RV.log_softmax(-1)
    cross_entropy_R = -log_q_RV.gather(1, labels_R1)[:, 0]
    if mix.alpha:
        gradient_RV.add_(log_q_RV.exp_(), alpha=mix.alpha)
        gradient_RV.scatter_add_(1, labels_R1, torch.full_like(gradient_RV[:, :1], -mix.alpha))
    loss_R = mix.alpha * cross_entropy_R + (1 - mix.alpha) * t * t * divergence_R
    return torch.stack([loss_R, divergence_R, cross_entropy_R]), gradient_RV


def distillation_values(
    student_NV: torch.Tensor, teacher: torch.Tensor | SparseTeacher, labels_N: torch.Tensor, mix: Mix
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loss, divergence (D alone, without T² and weight) and cross entropy of each token; the loss has a gradient.

    `teacher` is its logits [N, V], of the same vocabulary, or a sparse one (at the mix's temperature, for the forward KL alone).
    May overwrite the student's logits: do not use them afterwards. The gradient can be taken once.
    """
    loss_N, divergence_N, cross_entropy_N = _Distillation.apply(own_logits(student_NV), teacher, labels_N, mix)  # type: ignore[no-untyped-call]
    return loss_N, divergence_N, cross_entropy_N


class Distillation:
    """The mixed loss in training; in validation the cross entropy with the text, which is comparable with any other run."""

    metric_names = ("divergence", "cross_entropy")

    def __init__(self, mix: Mix, teacher: nn.Module | None) -> None:
        self.mix, self.teacher = mix, teacher  # None: each batch has the teacher's logits

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        plain = {name: batch[name] for name in ("input_ids", "labels")}
        weight = (batch["labels"] != IGNORE).sum()
        if self.teacher is None and IDS not in batch:  # a validation sample without the teacher's logits
            (loss,) = sum_over_tokens(model, plain, cross_entropy)
            return LossTerms(loss, weight, {"divergence": _terms(loss * 0, weight * 0), "cross_entropy": _terms(loss, weight)})
        loss, divergence, text_loss = self._sums(model, plain, batch)
        metrics = {"divergence": _terms(divergence, weight), "cross_entropy": _terms(text_loss, weight)}
        return LossTerms(loss if model.training else text_loss, weight, metrics)

    def _sums(self, model: nn.Module, plain: Batch, batch: Batch) -> list[torch.Tensor]:
        if self.teacher is None:
            sparse = {name: batch[name] for name in (IDS, PROBABILITIES, ENTROPY)}
            return sum_over_tokens(model, plain, self._of_sparse, **sparse)
        with_gradient = torch.is_grad_enabled()

        def use(hidden_BTD: torch.Tensor, tail: Tail) -> list[torch.Tensor]:
            with torch.set_grad_enabled(with_gradient):
                return sum_over_tokens(model, plain, partial(self._of_teacher, tail), **{_TEACHER_HIDDEN: hidden_BTD})

        with torch.no_grad():
            return run_tail(self.teacher, plain, use)  # the student's pass within the teacher's, whose head it needs

    def _of_sparse(self, student_RV: torch.Tensor, tokens: Batch) -> Sequence[torch.Tensor]:
        teacher = SparseTeacher(tokens[IDS], tokens[PROBABILITIES], tokens[ENTROPY])
        return distillation_values(student_RV, teacher, tokens["labels"], self.mix)

    def _of_teacher(self, tail: Tail, student_RV: torch.Tensor, tokens: Batch) -> Sequence[torch.Tensor]:
        with torch.no_grad():  # the teacher's vocabulary may have more padding
            teacher_RV = tail(tokens[_TEACHER_HIDDEN])[:, : student_RV.shape[1]]
        return distillation_values(student_RV, teacher_RV, tokens["labels"], self.mix)


def _terms(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return torch.stack([total.detach().double(), count.double()])
