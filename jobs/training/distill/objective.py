"""What a student learns: its teacher's distribution over the next token, mixed with the text's own."""

import torch
from torch import nn

from ropewalk.jobs.training.distill.losses import Mix, SparseTeacher, distillation_sums
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.losses import summed_cross_entropy
from ropewalk.jobs.training.loop.objective import LossTerms, logits_of

# B samples, T tokens a sample, N = B*T, V vocabulary, K tokens of a sparse teacher

IDS, PROBABILITIES, ENTROPY = "teacher_ids", "teacher_probabilities", "teacher_entropy"  # keys of a batch with cached logits


class Distillation:
    """The mix in training; in validation the cross entropy with the text, which compares with any other run's."""

    metric_names = ("divergence", "cross_entropy")

    def __init__(self, mix: Mix, teacher: nn.Module | None) -> None:
        self.mix, self.teacher = mix, teacher  # None: the teacher's word comes with each batch

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """The summed loss of the labels that are not IGNORE, and their number."""
        plain = {name: batch[name] for name in ("input_ids", "labels")}
        labels_N = batch["labels"].flatten()
        weight = (labels_N != IGNORE).sum()
        known = self._teacher_of(batch, plain)
        student_NV = logits_of(model, plain).flatten(0, 1)
        if known is None:  # a validation sample, of whom no teacher has said anything
            loss = summed_cross_entropy(student_NV, labels_N)
            return LossTerms(loss, weight, {"divergence": _terms(loss * 0, weight * 0), "cross_entropy": _terms(loss, weight)})
        if isinstance(known, torch.Tensor):
            known = known[:, : student_NV.shape[1]]  # the teacher's vocabulary may be padded further
        sums = distillation_sums(student_NV, known, labels_N, self.mix)
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
