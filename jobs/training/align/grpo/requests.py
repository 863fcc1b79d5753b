"""Communication of ranks and rollout workers through files of the run: weights of the policy, and requests for chunks.

rollouts/orders/
  policy.json                    the newest weights: {version, file}
  policy-000012.0001-000000.safetensors
  0000000128-0.0001-000000.json  a request: the missing chunks of try 0 of the round at 128

A worker writes the chunks into the ledger. A newer group of ranks removes the files of older ones.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ropewalk.cluster.fresh_reads import list_afresh, read_json_afresh
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.training.loop.weights.write_weights import write_header, write_tensor

FOLDER, POLICY = "orders", "policy.json"


class ChunkRequest(NamedTuple):
    """A request for chunks: the numbers of the chunks, and the prompt slots and try that they are split from."""

    position: int
    attempt: int
    slots: list[int]
    numbers: list[int]
    held_out: bool = False  # slots are held-out prompts, and `position` is the step of the validation


class ChunkRequests:
    """The requests of one group of ranks."""

    def __init__(self, rollouts: Path, fence: Fence) -> None:
        self.folder, self._fence = rollouts / FOLDER, fence
        self._who = f"{fence.attempt:04d}-{fence.group:06d}"

    def begin(self) -> None:
        """Remove files of older groups. Rank 0 calls it before workers start."""
        self._fence.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in list_afresh(self.folder):
            (self.folder / name).unlink(missing_ok=True)

    def publish(self, model: nn.Module, version: int, *, writes: bool) -> None:
        """Write the weights of the policy, tensor by tensor; all ranks call it, since each holds a part of them."""
        stored = model.state_dict()
        tensors = {name: value for name, value in [*model.named_parameters(), *model.named_buffers()] if name in stored}
        name = f"policy-{version:06d}.{self._who}.safetensors"
        if not writes:
            for tensor in tensors.values():
                _whole(tensor)
            return
        self._fence.check()
        with (self.folder / f".{name}").open("wb") as stream:
            starts = write_header(stream, tensors)
            for key, tensor in tensors.items():
                write_tensor(stream, starts[key], _whole(tensor).cpu())
        (self.folder / f".{name}").rename(self.folder / name)
        write_json(self.folder / POLICY, {"version": version, "file": name}, durable=False)
        for old in sorted(self.folder.glob("policy-*.safetensors"))[:-2]:  # a worker may still read the last but one
            old.unlink(missing_ok=True)

    def put(self, request: ChunkRequest) -> None:
        self._fence.check()
        write_json(self._file(request), request._asdict(), durable=False)

    def remove(self, request: ChunkRequest) -> None:
        self._file(request).unlink(missing_ok=True)

    def _file(self, request: ChunkRequest) -> Path:
        kind = "-held-out" if request.held_out else ""
        return self.folder / f"{request.position:010d}-{request.attempt}{kind}.{self._who}.json"

    # --- used by workers

    def policy(self) -> tuple[int, Path] | None:
        """Return the newest version and the file of its weights."""
        policy: dict[str, Any] | None = read_json_afresh(self.folder / POLICY)
        return (policy["version"], self.folder / policy["file"]) if policy else None

    def pending(self) -> list[ChunkRequest]:
        """Return the requests of this group, the first round first."""
        requests = []
        for name in sorted(list_afresh(self.folder)):
            if name.endswith(f".{self._who}.json"):
                try:
                    requests.append(ChunkRequest(**json.loads((self.folder / name).read_text())))
                except (OSError, ValueError):  # removed meanwhile
                    continue
        return requests


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full value of a sharded tensor."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
