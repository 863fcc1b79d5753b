"""The newest checkpoint of a run, and the tensors of one, read by name, whole or some of their rows, in one process."""

import logging

import torch

from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.layout import directory_of, listed_steps, steps_in
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest, read_manifest
from ropewalk.sharding.checkpoints.read_plan import PartReader, ReadPlan, problems
from ropewalk.sharding.placement import Box

log = logging.getLogger(__name__)


def newest_complete(root: StoragePath, step: int | None = None) -> tuple[StoragePath, CheckpointManifest]:
    """Return the newest checkpoint (or that of `step`) whose files are all there, in one process. Raises CheckpointError.

    Tensors are verified when they are read.
    """
    steps = sorted(listed_steps(root).union(steps_in(root))) if step is None else [step]
    for candidate in reversed(steps):
        folder = root.child(directory_of(candidate))
        try:
            manifest = read_manifest(folder)
            wrong = problems(folder, manifest)
        except CheckpointError as error:
            wrong = [str(error)]
        if not wrong:
            return folder, manifest
        log.warning("%s: %s", folder.url, "; ".join(wrong))
    wanted = "complete checkpoint" if step is None else f"complete checkpoint of step {step}"
    raise CheckpointError(f"{root.url}: no {wanted} (examined steps: {', '.join(map(str, steps)) or 'none'})")


class StoredTensors:
    """Names, shapes and values of the tensors of a checkpoint, assembled from the pieces that the ranks wrote."""

    def __init__(self, folder: StoragePath, manifest: CheckpointManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._layout = manifest.tensors.layout()
        self._plan, self._reader = ReadPlan(self._layout), PartReader(folder, manifest, self._layout)

    @property
    def names(self) -> list[str]:
        return list(self._layout.tensors)

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self._layout.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._layout.tensors[name].torch_dtype

    def read(self, name: str, first_row: int = 0, end_row: int | None = None) -> torch.Tensor:
        """Return rows [first_row, end_row) of a tensor's dim 0 on the CPU; by default all, and a scalar whole.

        Only the blocks that hold these rows are read. Raises CheckpointError if they are damaged.
        """
        shape = tuple(self.shape(name))
        start = (0,) * len(shape)
        if shape:
            end_row = shape[0] if end_row is None else end_row
            assert 0 <= first_row <= end_row <= shape[0], f"{name} has {shape[0]} rows, not {first_row} to {end_row}"
            start, shape = (first_row, *start[1:]), (end_row - first_row, *shape[1:])
        result = torch.empty(shape, dtype=self.dtype(name))
        parts = self._plan.parts(name, [Box(start, shape, (0,) * len(shape))])
        try:
            self._reader.read(parts, {name: result})
        except CheckpointError as error:
            raise CheckpointError(f"{self.folder.url}: {error}; choose an older step") from None
        return result

    def read_all(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the whole tensors whose names start with `prefix`, by the rest of their name."""
        return {name.removeprefix(prefix): self.read(name) for name in self.names if name.startswith(prefix)}
