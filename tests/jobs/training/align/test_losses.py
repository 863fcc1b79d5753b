"""Each loss and its gradient against the paper's formula, written down again in plain torch, in float64."""

import math

import pytest
import torch

from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.preferences.losses import Answers, bradley_terry, kto

PAIRS = 64


def answers(seed: int = 0) -> Answers:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (PAIRS, 2), generator=random)
    log_probs = -(torch.rand(PAIRS, 2, generator=random, dtype=torch.float64) * 4 + 0.01) * lengths
    reference = log_probs + torch.randn(PAIRS, 2, generator=random, dtype=torch.float64)
    return Answers(log_probs.requires_grad_(), reference, lengths)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def dpo_h(a: Answers, beta: float) -> torch.Tensor:
    """2305.18290, equation 7."""
    return beta * (a.log_probs[:, 0] - a.reference[:, 0]) - beta * (a.log_probs[:, 1] - a.reference[:, 1])


def normalized_h(a: Answers, beta: float) -> torch.Tensor:
    """2411.15124, equation 6."""
    better, worse = ((a.log_probs - a.reference)[:, i] / a.lengths[:, i] for i in (0, 1))
    return beta * better - beta * worse


def orpo_loss(a: Answers) -> torch.Tensor:
    """2403.07691, equations 4 to 6: odds of the geometric mean of the tokens' probabilities."""
    p = torch.exp(a.log_probs / a.lengths)
    odds = p / (1 - p)
    return -a.log_probs[:, 0] / a.lengths[:, 0] - 0.1 * torch.log(sigmoid(torch.log(odds[:, 0] / odds[:, 1])))


def simpo_loss(a: Answers) -> torch.Tensor:
    """2405.14734, equation 6."""
    means = a.log_probs / a.lengths
    return -torch.log(sigmoid(2.0 * means[:, 0] - 2.0 * means[:, 1] - 1.0))


def robust_loss(a: Answers) -> torch.Tensor:
    """2403.00409, equation 12."""
    right, wrong = -torch.log(sigmoid(dpo_h(a, 0.1))), -torch.log(sigmoid(-dpo_h(a, 0.1)))
    return (0.8 * right - 0.2 * wrong) / 0.6


FORMULAS = {
    "dpo": ({}, lambda a: -torch.log(sigmoid(dpo_h(a, 0.1)))),
    "dpo with beta": ({"beta": 0.5}, lambda a: -torch.log(sigmoid(dpo_h(a, 0.5)))),
    "dpo smoothed": (
        {"label_smoothing": 0.2},
        lambda a: -0.8 * torch.log(sigmoid(dpo_h(a, 0.1))) - 0.2 * torch.log(sigmoid(-dpo_h(a, 0.1))),
    ),
    "dpo robust": ({"label_smoothing": 0.2, "loss": "robust"}, robust_loss),
    "dpo length-normalised": ({"length_normalized": True}, lambda a: -torch.log(sigmoid(normalized_h(a, 0.1)))),
    "ipo": ({"method": "ipo"}, lambda a: (dpo_h(a, 1.0) - 1 / 0.2) ** 2),  # 2310.12036, equation 17, tau 0.1
    "ipo length-normalised": ({"method": "ipo", "length_normalized": True}, lambda a: (normalized_h(a, 1.0) - 1 / 0.2) ** 2),
    "orpo": ({"method": "orpo"}, orpo_loss),
    "simpo": ({"method": "simpo"}, simpo_loss),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_loss_and_its_gradient_are_the_papers(name: str) -> None:
    keys, formula = FORMULAS[name]
    config = AlignConfig.model_validate({"model": {"path": "/m"}, "data": "/d", "steps": 1, **keys})
    ours, theirs = answers(), answers()
    loss, wanted = config.load_loss()(ours).loss, formula(theirs)
    assert torch.allclose(loss, wanted, rtol=1e-12, atol=1e-12)
    loss.sum().backward()
    wanted.sum().backward()
    assert ours.log_probs.grad is not None
    assert theirs.log_probs.grad is not None
    assert torch.allclose(ours.log_probs.grad, theirs.log_probs.grad, rtol=1e-10, atol=1e-14)


def test_rewards_are_those_that_the_loss_compares() -> None:
    config = AlignConfig.model_validate({"model": {"path": "/m"}, "data": "/d", "steps": 1, "beta": 0.3})
    result = answers()
    rewards = config.load_loss()(result).rewards
    assert torch.allclose(rewards, 0.3 * (result.log_probs - result.reference))


def test_kto_is_the_papers() -> None:
    """2402.01306, equation 8: each answer against the KL of the batch."""
    random = torch.Generator().manual_seed(0)
    ratios = torch.randn(PAIRS, generator=random, dtype=torch.float64).mul_(5).requires_grad_()
    desirable = torch.rand(PAIRS, generator=random) < 0.5
    z = torch.tensor(0.7, dtype=torch.float64)
    wanted = torch.where(desirable, 1.3 * (1 - sigmoid(0.2 * (ratios - z))), 0.8 * (1 - sigmoid(0.2 * (z - ratios))))
    loss = kto(ratios, desirable, z, beta=0.2, desirable_weight=1.3, undesirable_weight=0.8)
    assert torch.allclose(loss, wanted, rtol=1e-12)
    (gradient,), (wanted_gradient,) = torch.autograd.grad(loss.sum(), ratios), torch.autograd.grad(wanted.sum(), ratios)
    assert torch.allclose(gradient, wanted_gradient, rtol=1e-10)


def test_bradley_terry_is_the_papers() -> None:
    scores = answers().log_probs
    wanted = -torch.log(sigmoid(scores[:, 0] - scores[:, 1]))
    assert torch.allclose(bradley_terry(scores), wanted, rtol=1e-12)


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo"])
def test_far_from_each_other_answers_give_finite_losses_and_gradients(method: str) -> None:
    config = AlignConfig.model_validate({"model": {"path": "/m"}, "data": "/d", "steps": 1, "method": method})
    values = torch.tensor([[-1e5, -1e-9], [-1e-9, -1e5], [0.0, 0.0]], requires_grad=True)
    loss = config.load_loss()(Answers(values, torch.zeros(3, 2), torch.ones(3, 2)))[0]
    assert loss.isfinite().all()
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_with_the_reference_itself_dpo_is_log_2() -> None:
    config = AlignConfig.model_validate({"model": {"path": "/m"}, "data": "/d", "steps": 1})
    result = answers()
    same = result._replace(reference=result.log_probs.detach())
    assert torch.allclose(config.load_loss()(same).loss, torch.full((PAIRS,), math.log(2), dtype=torch.float64))
