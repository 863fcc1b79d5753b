"""What ranks and rollout workers tell each other, in files of the run: weights of the policy, and orders of chunks.

rollouts/orders/
  policy.json                    the newest weights: {version, file}
  policy-000012.0001-000000.safetensors
  0000000128-0.0001-000000.json  an order: the chunks of try 0 of the round at 128 that are missing

A worker writes the chunks into the ledger. Files of an older group are of no use to a newer one, which removes them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ropewalk.cluster.fresh_reads import list_afresh, read_json_afresh
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import write_json

FOLDER, POLICY = "orders", "policy.json"


class Order(NamedTuple):
    """Chunks that are to be drawn: those with these numbers, of the slots' draws at this try."""

    position: int
    attempt: int
    slots: list[int]
    numbers: list[int]
    held_out: bool = False  # slots are held-out prompts, and the position is the step after which they are answered


class Orders:
    """The orders of one group of ranks."""

    def __init__(self, rollouts: Path, fence: Fence) -> None:
        self.folder, self._fence = rollouts / FOLDER, fence
        self._who = f"{fence.attempt:04d}-{fence.group:06d}"

    def begin(self) -> None:
        """Remove what older groups left. Rank 0 calls it before workers start."""
        self._fence.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in list_afresh(self.folder):
            (self.folder / name).unlink(missing_ok=True)

    def publish(self, model: nn.Module, version: int, *, writes: bool) -> None:
        """Write the weights of the policy; all ranks call it, for each holds a part of them."""
        tensors = {name: _whole(tensor, keep=writes) for name, tensor in model.state_dict().items()}
        if not writes:
            return
        from safetensors.torch import save_file

        unique = {value.data_ptr(): (name, value) for name, value in reversed(tensors.items()) if value is not None}
        name = f"policy-{version:06d}.{self._who}.safetensors"
        self._fence.check()
        save_file(dict(unique.values()), self.folder / f".{name}")
        (self.folder / f".{name}").rename(self.folder / name)
        write_json(self.folder / POLICY, {"version": version, "file": name}, durable=False)
        for old in sorted(self.folder.glob("policy-*.safetensors"))[:-2]:  # a worker may be reading the last but one
            old.unlink(missing_ok=True)

    def give(self, order: Order) -> None:
        """Give an order to the workers."""
        self._fence.check()
        write_json(self._file(order), order._asdict(), durable=False)

    def done(self, order: Order) -> None:
        """Withdraw an order: its chunks are there."""
        self._file(order).unlink(missing_ok=True)

    def _file(self, order: Order) -> Path:
        kind = "-held-out" if order.held_out else ""
        return self.folder / f"{order.position:010d}-{order.attempt}{kind}.{self._who}.json"

    # --- of a worker

    def policy(self) -> tuple[int, Path] | None:
        """The newest version and the file of its weights."""
        found: dict[str, Any] | None = read_json_afresh(self.folder / POLICY)
        return (found["version"], self.folder / found["file"]) if found else None

    def pending(self) -> list[Order]:
        """The orders of this group, the first round first."""
        found = []
        for name in sorted(list_afresh(self.folder)):
            if name.endswith(f".{self._who}.json"):
                try:
                    found.append(Order(**json.loads((self.folder / name).read_text())))
                except (OSError, ValueError):  # it was withdrawn meanwhile
                    continue
        return found


def _whole(tensor: torch.Tensor, *, keep: bool) -> torch.Tensor | None:
    """The full value of a sharded tensor on the CPU, in memory of its own."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu().contiguous() if keep else None
