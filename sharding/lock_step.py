"""Ranks of a sharded model in lock step: each forward pass gathers weights, so all ranks make the same number of them."""

from typing import Any

import torch

from ropewalk.sharding.group import Group


class LockStep:
    """Lets each rank call a sharded model as it needs; a rank that has nothing to compute takes part with one token.

    Between two calls of `settle`, which all ranks make, no rank may use another collective of the group.
    """

    def __init__(self, model: Any, group: Group) -> None:
        self._model, self._group, self._idle = model, group, False
        self._hook = model.register_forward_pre_hook(self._announce, prepend=True)

    def settle(self) -> None:
        """Take part in the forward passes of the other ranks until none of them computes."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self._group.device)
        self._idle = True
        while self._group.any(False):
            with torch.no_grad():
                self._model(input_ids=token, use_cache=False)
        self._idle = False

    def end(self) -> None:
        """Settle, and let the model be called as before."""
        self.settle()
        self._hook.remove()

    def _announce(self, *_: Any) -> None:
        if not self._idle:
            self._group.any(True)
