"""Draws without bias: each token's mean is its probability, and the gradient's mean is that of the whole distribution."""

import pytest
import torch

from ropewalk.jobs.training.distill.cache import entropy, likeliest, sample_tokens, systematic_counts, uniforms
from ropewalk.jobs.training.distill.losses import Mix, SparseTeacher, distillation_values

V, DRAWS, TIMES = 41, 50, 1000
MIX = Mix("forward_kl", 0.5, 1.0, 0.0)


def logits(seed: int, rows: int = 3) -> torch.Tensor:
    return 2.0 * torch.randn(rows, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(teacher: torch.Tensor | SparseTeacher, times: int = 1) -> torch.Tensor:
    """Gradient of each row's loss by the student's logits, for `times` copies of the student."""
    student = logits(7).repeat(times, 1).requires_grad_()
    distillation_values(student, teacher, torch.zeros(len(student), dtype=torch.int64), MIX)[0].sum().backward()
    assert student.grad is not None
    return student.grad


def sparse(logits_RV: torch.Tensor, sample: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> SparseTeacher:
    ids, weights, sizes = sample
    most = int(sizes.max())
    places = torch.arange(most) < sizes[:, None]
    ids_RK, p_RK = torch.zeros(places.shape, dtype=torch.int64), torch.zeros(places.shape, dtype=torch.float64)
    ids_RK[places], p_RK[places] = ids, weights.double()
    return SparseTeacher(ids_RK, p_RK / p_RK.sum(-1, keepdim=True), entropy(logits_RV))


def test_the_mean_gradient_of_a_thousand_draws_is_that_of_the_whole_distribution() -> None:
    teacher, whole = logits(1), gradient(logits(1))
    many, numbers = teacher.repeat(TIMES, 1), torch.cat([uniforms(5, draw, 3) for draw in range(TIMES)])
    mean = gradient(sparse(many, sample_tokens(many, numbers, DRAWS)), TIMES).reshape(TIMES, 3, V).mean(0)
    error = (mean - whole).abs().max().item()
    biased = (gradient(sparse(teacher, likeliest(teacher, 8))) - whole).abs().max().item()
    assert error < 1e-3
    assert biased > 1e-2, "the likeliest tokens are no substitute"


def test_counts_sum_up_and_stay_near_their_mean() -> None:
    p = torch.softmax(logits(2, rows=200), -1)
    counts = systematic_counts(p, uniforms(0, 0, 200), 50)
    assert (counts.sum(-1) == 50).all()
    assert ((counts - 50 * p).abs() < 1 + 1e-9).all()
    certain = systematic_counts(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([0.999999999], dtype=torch.float64), 50)
    assert certain.tolist() == [[0, 50, 0]]


def test_draws_are_a_function_of_seed_position_and_token() -> None:
    assert torch.equal(uniforms(1, 9, 5), uniforms(1, 9, 7)[:5])
    others = [uniforms(1, 9, 5), uniforms(2, 9, 5), uniforms(1, 10, 5)]
    assert len({tuple(each.tolist()) for each in others}) == 3
    many = torch.cat([uniforms(0, position, 100) for position in range(100)])
    assert many.mean().item() == pytest.approx(0.5, abs=0.01)
    assert 0 <= many.min() < many.max() < 1
