"""Small results of a device, copied to the host while the device goes on: reading them late waits for little."""

import time
from typing import Any, Self

import torch


class HostCopy:
    """Values of a tensor on their way to the host, and the time at which the device had computed them.

    Nothing waits until `read` is called. The tensor must not change.
    """

    def __init__(self, values: torch.Tensor, after: Self | None = None) -> None:
        """Start the copy; `after` is the copy started before this one, if there is one."""
        self._values = values.detach().to("cpu", non_blocking=True)  # in pinned memory, so that a GPU need not wait
        self._event: Any = torch.cuda.Event(enable_timing=True) if values.is_cuda else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._event.record()
        self._after = after
        self.ended = time.perf_counter()  # when the values were computed, once they have been read

    @property
    def ready(self) -> bool:
        """True if `read` does not wait."""
        return self._event is None or bool(self._event.query())

    def read(self) -> list[float]:
        """Return the values, flat. On a GPU this waits for it, and so for the other ranks, with the stack in this file."""
        if self._event is not None:
            early = not self._event.query()
            self._event.synchronize()
            self.ended = time.perf_counter()
            earlier, self._after = self._after, None
            if not early and earlier is not None and earlier._event is not None:
                milliseconds = earlier._event.elapsed_time(self._event)
                self.ended = min(self.ended, earlier.ended + milliseconds / 1000)
        values: list[float] = self._values.flatten().tolist()
        return values
