"""Divergences and their gradients against plain torch formulas in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ropewalk.jobs.training.distill import losses
from ropewalk.jobs.training.distill.losses import Mix, SparseTeacher, distillation_values

N, V = 8, 11


def logits(seed: int) -> torch.Tensor:
    return 3.0 * torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels() -> torch.Tensor:
    result = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(2))
    return result


def plain_loss(mix: Mix, student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """alpha · CE + (1 - alpha) · T² · D, by the definitions, token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(N):
        p, q = torch.softmax(teacher[row] / mix.temperature, 0), torch.softmax(student[row] / mix.temperature, 0)
        if mix.divergence == "forward_kl":
            result = sum(p[i] * (p[i] / q[i]).log() for i in range(V))
        elif mix.divergence == "reverse_kl":
            result = sum(q[i] * (q[i] / p[i]).log() for i in range(V))
        else:
            m = mix.beta * p + (1 - mix.beta) * q
            result = sum(mix.beta * p[i] * (p[i] / m[i]).log() + (1 - mix.beta) * q[i] * (q[i] / m[i]).log() for i in range(V))
        cross = -torch.softmax(student[row], 0)[targets[row]].log()
        total = total + mix.alpha * cross + (1 - mix.alpha) * mix.temperature**2 * result
    return total


MIXES = [
    Mix(divergence, beta, temperature, alpha)
    for divergence, beta in [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jensen_shannon", 0.5), ("jensen_shannon", 0.1)]
    for temperature, alpha in itertools.product([1.0, 2.5], [0.0, 0.3])
]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(str(part) for part in mix))
def test_losses_and_gradients_are_the_formulas(mix: Mix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_PART_NUMBERS", 5 * V)  # chunks of 5 and 3 rows
    student = logits(0).requires_grad_()
    wanted = plain_loss(mix, student, logits(1), labels())
    (gradient,) = torch.autograd.grad(wanted, student)
    ours = logits(0).requires_grad_()
    loss, _, text_loss = distillation_values(ours, logits(1), labels(), mix)
    (2.0 * loss.sum()).backward()
    assert loss.sum().item() == pytest.approx(wanted.item(), rel=1e-12)
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, 2.0 * gradient, rtol=1e-9, atol=1e-12)
    cross = F.cross_entropy(logits(0), labels(), reduction="sum")
    assert text_loss.sum().item() == pytest.approx(cross.item(), rel=1e-12)


def test_jensen_shannon_goes_over_into_both_kls() -> None:
    """At small beta it is beta times the forward KL, at large beta 1 - beta times the reverse one."""
    small = 1e-7

    def divergence(name: str, beta: float = 0.5) -> float:
        return distillation_values(logits(0), logits(1), labels(), Mix(name, beta, 1.0, 0.0))[1].sum().item()

    assert divergence("jensen_shannon", small) / small == pytest.approx(divergence("forward_kl"), rel=1e-3)
    assert divergence("jensen_shannon", 1 - small) / small == pytest.approx(divergence("reverse_kl"), rel=1e-3)


def test_a_teacher_of_whom_all_is_known_is_the_teacher() -> None:
    mix = Mix("forward_kl", 0.5, 2.0, 0.25)
    p = torch.softmax(logits(1) / 2.0, -1)
    sparse = SparseTeacher(torch.arange(V).expand(N, V), p, -(p * p.log()).sum(-1))
    whole, parts = logits(0).requires_grad_(), logits(0).requires_grad_()
    first, other = (
        distillation_values(student, teacher, labels(), mix)[0].sum()
        for student, teacher in ((whole, logits(1)), (parts, sparse))
    )
    first.backward()
    other.backward()
    assert other.item() == pytest.approx(first.item(), rel=1e-12)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-9, atol=1e-12)


def test_nothing_of_the_size_of_the_logits_is_made() -> None:
    """Beyond the student's own logits, which become the gradient, only parts are worked on."""
    weight = torch.randn(V, 7, requires_grad=True)
    student = torch.randn(N, 7) @ weight.T
    address = student.data_ptr()
    loss, *_ = distillation_values(student, torch.randn(N, V), labels(), Mix("forward_kl", 0.5, 1.0, 0.5))
    assert loss.grad_fn.gradient_NV.data_ptr() == address  # type: ignore[union-attr]
    loss.sum().backward()
    assert weight.grad is not None
    assert math.isfinite(weight.grad.sum().item())


def test_reduced_precision_is_rounded_and_no_more() -> None:
    mix = Mix("reverse_kl", 0.5, 1.0, 0.2)
    exact, rounded = logits(0).bfloat16().double().requires_grad_(), logits(0).bfloat16().requires_grad_()
    teacher = logits(1).bfloat16()
    wanted = distillation_values(exact, teacher.double(), labels(), mix)[0].sum()
    result = distillation_values(rounded, teacher, labels(), mix)[0].sum()
    wanted.backward()
    result.backward()
    assert result.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(rounded.grad.double(), exact.grad, rtol=1e-2, atol=1e-5)  # type: ignore[union-attr]
