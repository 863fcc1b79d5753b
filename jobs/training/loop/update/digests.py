"""Digests of a rank's part of the training state: equal bits have equal digests, and a flipped bit changes one."""

import math
from collections.abc import Sequence

import torch
import xxhash

from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.sharding.checkpoints.staging import local_tensor
from ropewalk.sharding.checkpoints.state import MODEL

PARTS = ("weights", "optimizer state")  # averages of weights belong to the latter
_COLUMNS = 256  # sums of a tensor, which have different factors
_FACTOR = -7046029254386353131  # 2^64 over the golden ratio, an odd number
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return 64 bits that depend on all bits of tensors of one device, as a tensor without dimensions."""
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return weighted_sum(tensors)
    state = xxhash.xxh3_64()
    for tensor in tensors:
        state.update(_bits(tensor, torch.uint8).numpy().data)
    return torch.tensor(state.intdigest() - (1 << 63))


def weighted_sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a digest by sums modulo 2^64, for which a device needs one pass, no memory, and no wait of the host.

    A single flipped bit always changes it, since an odd factor loses no bit.
    """
    sums = []
    for tensor in tensors:
        bits = _bits(tensor, _INTEGERS[tensor.element_size()])
        if bits.numel():
            sums.append(bits.view(-1, math.gcd(bits.numel(), _COLUMNS)).sum(0, dtype=torch.int64))
    total = torch.cat(sums)
    return (total * torch.arange(1, 2 * total.numel(), 2, device=total.device).mul_(_FACTOR)).sum()


def _bits(tensor: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    return tensor.reshape(-1).view(kind)


class StateDigests:
    """Digests of a rank's weights and optimizer state. With `at_rest`, also which of them changed between two updates."""

    def __init__(self, state: TrainState, *, at_rest: bool) -> None:
        weights = [local_tensor(parameter) for parameter in state.model.parameters()]
        others = [local_tensor(tensor) for name, tensor in state.tensors.items() if not name.startswith(MODEL)]
        self._parts, self.at_rest = (weights, others), at_rest
        self.restart()

    def restart(self) -> None:
        """Take the current state, which was loaded, for right."""
        self.changed = torch.zeros(len(PARTS), dtype=torch.bool, device=self._parts[0][0].device)  # by part
        # with `at_rest`: digests after the last check, and after each update since
        self.history = [self.now()] if self.at_rest else []

    def start_history(self) -> None:
        """Forget the updates so far."""
        del self.history[:-1]

    def now(self) -> torch.Tensor:
        """Return the digest of each part, on the device."""
        return torch.stack([digest(part) for part in self._parts])

    def end_update(self) -> None:
        """Note the state after an update."""
        if self.at_rest:
            self.history.append(self.now())

    def compare(self) -> torch.Tensor:
        """Note in `changed` which parts differ from those after the last update, and return the digests."""
        digests = self.now()
        if self.history:
            self.changed = self.changed | (digests != self.history[-1])
        return digests
