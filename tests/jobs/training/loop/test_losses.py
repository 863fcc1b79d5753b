import pytest
import torch
import torch.nn.functional as F

from ropewalk.jobs.training.loop.losses import label_log_probabilities


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -label_log_probabilities(logits, labels).sum()


def gradients(loss_of: object, head: object, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 16, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(50, 16, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(0, 50, (14,), generator=generator)
    logits = head(F.linear(hidden, weight)).flatten(0, 1)  # type: ignore[operator]
    loss = loss_of(logits, targets)  # type: ignore[operator]
    (loss * 1.5).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [loss.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "head", [torch.clone, torch.tanh, lambda x: x * 30, lambda x: x], ids=["copy", "capped", "scaled", "plain"]
)
def test_agrees_with_torch(head: object, dtype: torch.dtype) -> None:
    ours = gradients(summed_cross_entropy, head, dtype)
    theirs = gradients(lambda logits, targets: F.cross_entropy(logits.float(), targets, reduction="sum"), head, dtype)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = summed_cross_entropy(logits * 1.0, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_what_is_no_number_shows() -> None:
    assert summed_cross_entropy(torch.tensor([[float("nan"), 1.0]]), torch.tensor([1])).isnan()
