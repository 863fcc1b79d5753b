"""Divergences of a student from its teacher that overwrite the student's logits with their gradient.

The loss of a token is alpha · cross entropy + (1 - alpha) · T² · D(teacher, student), of distributions at the temperature T
(Hinton et al., 1503.02531: T² preserves the gradient's size). D is the forward or reverse KL divergence, or the generalized
Jensen-Shannon divergence (GKD, 2306.13649): beta · KL(teacher | M) + (1 - beta) · KL(student | M), where M is beta · teacher +
(1 - beta) · student.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.losses import is_free, summed_cross_entropy
from ropewalk.jobs.training.loop.objective import LossTerms, logits_of

# B samples, T tokens a sample, N = B*T labels, R rows of a chunk, V vocabulary, K tokens of a sparse teacher

IDS, PROBABILITIES, ENTROPY = "teacher_ids", "teacher_probabilities", "teacher_entropy"  # keys of a batch with cached logits
_CHUNK_NUMBERS = 1 << 22  # logits processed at once: no other tensor of the size [N, V] is allocated


class Mix(NamedTuple):
    """The components of the loss and their weights."""

    divergence: str  # forward_kl | reverse_kl | jensen_shannon
    beta: float
    temperature: float
    alpha: float  # weight of cross entropy with the text


class Sums(NamedTuple):
    """Sums over the labels that are not IGNORE."""

    loss: torch.Tensor  # with a gradient
    divergence: torch.Tensor  # D alone, without T² and weight
    cross_entropy: torch.Tensor


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
    """The loss, with its gradient computed in the forward pass, chunk by chunk, in the memory of the student's logits."""

    @staticmethod
    def forward(
        ctx: Any, student_NV: torch.Tensor, teacher: torch.Tensor | SparseTeacher, labels_N: torch.Tensor, mix: Mix
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        exact = torch.float64 if student_NV.dtype == torch.float64 else torch.float32
        sums = torch.zeros(3, dtype=torch.float64, device=student_NV.device)
        rows = max(1, _CHUNK_NUMBERS // student_NV.shape[1])
        for start in range(0, len(labels_N), rows):
            part = slice(start, start + rows)
            chosen = teacher[part] if isinstance(teacher, torch.Tensor) else SparseTeacher(*(each[part] for each in teacher))
            terms_3R, gradient_RV = _chunk(student_NV[part].to(exact), chosen, labels_N[part], mix)
            sums += terms_3R.double().sum(1)
            student_NV[part] = gradient_RV
        ctx.gradient_NV = student_NV
        loss, divergence, cross_entropy = sums.to(exact).unbind()
        ctx.mark_non_differentiable(divergence, cross_entropy)
        return loss, divergence, cross_entropy

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        return (gradient_NV if not scale.is_cuda and scale == 1.0 else gradient_NV.mul_(scale)), None, None, None


def _chunk(
    student_RV: torch.Tensor, teacher: torch.Tensor | SparseTeacher, labels_R: torch.Tensor, mix: Mix
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss, divergence and cross entropy of each row, [3, R], and the loss's gradient, [R, V]."""
    counted_R, t = labels_R != IGNORE, mix.temperature
    targets_R1 = labels_R.clamp(min=0)[:, None]
    scaled_RV = student_RV / t if t != 1.0 else student_RV
    if isinstance(teacher, SparseTeacher):
        divergence_R, gradient_RV = sparse_divergence_of(teacher, scaled_RV)
    else:
        of_teacher_RV = teacher.to(student_RV.dtype)
        divergence_R, gradient_RV = divergence_of(mix, of_teacher_RV / t if t != 1.0 else of_teacher_RV, scaled_RV)
    gradient_RV.mul_((1 - mix.alpha) * t)
    log_q_RV = student_RV.log_softmax(-1)
    cross_entropy_R = -log_q_RV.gather(1, targets_R1)[:, 0]
    if mix.alpha:
        gradient_RV.add_(log_q_RV.exp_(), alpha=mix.alpha)
        gradient_RV.scatter_add_(1, targets_R1, torch.full_like(gradient_RV[:, :1], -mix.alpha))
    loss_R = mix.alpha * cross_entropy_R + (1 - mix.alpha) * t * t * divergence_R
    counted_RV = counted_R[:, None]
    return torch.stack([loss_R, divergence_R, cross_entropy_R]).where(counted_R, 0.0), gradient_RV.where(counted_RV, 0.0)


def distillation_sums(student_NV: torch.Tensor, teacher: torch.Tensor | SparseTeacher, labels_N: torch.Tensor, mix: Mix) -> Sums:
    """Sum loss, divergence and cross entropy over all labels.

    `teacher` is its logits [N, V], of the same vocabulary, or a sparse one (at the mix's temperature, for the forward KL alone).
    May overwrite the student's logits: do not use them afterwards. The gradient can be taken once.
    """
    if torch.is_grad_enabled() and not is_free(student_NV):
        student_NV = student_NV.clone()
    loss, divergence, cross_entropy = _Distillation.apply(student_NV, teacher, labels_N, mix)  # type: ignore[no-untyped-call]
    return Sums(loss, divergence, cross_entropy)


class Distillation:
    """The mixed loss in training; in validation the cross entropy with the text, which is comparable with any other run."""

    metric_names = ("divergence", "cross_entropy")

    def __init__(self, mix: Mix, teacher: nn.Module | None) -> None:
        self.mix, self.teacher = mix, teacher  # None: each batch has the teacher's logits

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        plain = {name: batch[name] for name in ("input_ids", "labels")}
        labels_N = batch["labels"].flatten()
        weight = (labels_N != IGNORE).sum()
        teacher = self._teacher_of(batch, plain)
        student_NV = logits_of(model, plain).flatten(0, 1)
        if teacher is None:  # a validation sample without the teacher's logits
            loss = summed_cross_entropy(student_NV, labels_N)
            return LossTerms(loss, weight, {"divergence": _terms(loss * 0, weight * 0), "cross_entropy": _terms(loss, weight)})
        if isinstance(teacher, torch.Tensor):
            teacher = teacher[:, : student_NV.shape[1]]  # the teacher's vocabulary may have more padding
        sums = distillation_sums(student_NV, teacher, labels_N, self.mix)
        metrics = {"divergence": _terms(sums.divergence, weight), "cross_entropy": _terms(sums.cross_entropy, weight)}
        return LossTerms(sums.loss if model.training else sums.cross_entropy, weight, metrics)

    def _teacher_of(self, batch: Batch, plain: Batch) -> torch.Tensor | SparseTeacher | None:
        if self.teacher is not None:
            with torch.no_grad():
                return logits_of(self.teacher, plain).flatten(0, 1)
        if IDS not in batch:
            return None
        return SparseTeacher(batch[IDS].flatten(0, 1), batch[PROBABILITIES].flatten(0, 1), batch[ENTROPY].flatten())


def _terms(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return torch.stack([total.detach().double(), count.double()])
