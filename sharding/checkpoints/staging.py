"""The copy in host memory from which a rank's part of a checkpoint is written while training goes on."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from ropewalk.sharding.checkpoints.file_layout import FileLayout
from ropewalk.sharding.checkpoints.state import MODEL, State


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the piece of a tensor that this rank holds, without its history."""
    local: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


class Staging:
    """Memory that is used again by each save; pinned if the state is on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._memory: torch.Tensor | None = None
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def prepare(self, state: State, layout: FileLayout, rank: int, memory: torch.Tensor | None = None) -> None:
        """Choose the place of each piece. Buffers, which a forward pass may change, are copied at once.

        `memory`: bytes to copy to; unset: memory of its own.
        """
        places = list(layout.contents(rank))
        size = places[-1][2] if places else 0
        if memory is not None:
            assert memory.numel() == size
            self._memory = memory
        elif self._memory is None or self._memory.numel() != size:
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)
        self._copies = []
        for name, start, end in places:
            local = local_tensor(state[name])
            copy = self._memory[start:end].view(local.dtype).view(local.shape), local
            if name.startswith(MODEL) and not isinstance(state[name], DTensor):
                copy[0].copy_(local)
            else:
                self._copies.append(copy)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())

    def copy(self) -> Any:
        """Copy the other tensors, and return the memory as an array of bytes. Nothing may change them meanwhile."""
        assert self._memory is not None
        with torch.cuda.stream(self._stream):  # does nothing without a stream
            for target, local in self._copies:
                target.copy_(local, non_blocking=self._stream is not None)
        if self._stream is not None:
            self._stream.synchronize()
        self._copies = []
        return self._memory.numpy()

    def free(self) -> None:
        self._memory, self._copies = None, []
