"""The exponential moving average of what is trained: sharded as the weights are, and saved with them."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ropewalk.sharding.state import EMA, MODEL, State, trained_state


class MovingAverage:
    """A mean of the trained weights over the steps, beside them. It begins as the weights do."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.decay = decay
        trained = trained_state(model, optimizer)
        self._weights = [_local(tensor) for tensor in trained.values()]
        self.tensors: State = {f"{EMA}{name.removeprefix(MODEL)}": tensor.detach().clone() for name, tensor in trained.items()}
        self._means = [_local(tensor) for tensor in self.tensors.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Count the weights after `step` completed steps. The first steps are kept for less long, as the weights were random."""
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._means, self._weights, 1 - keep)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()
