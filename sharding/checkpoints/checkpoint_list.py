"""A summary of each checkpoint of a run, from its manifest, and on request from every byte of its files."""

from dataclasses import dataclass

from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.layout import directory_of, listed_steps, pins, steps_in
from ropewalk.sharding.checkpoints.manifest import read_manifest
from ropewalk.sharding.checkpoints.read_plan import problems


@dataclass(frozen=True, kw_only=True)
class CheckpointSummary:
    """One checkpoint. Without a readable manifest only step, pins and problems are known."""

    step: int
    pinned_by: list[str]
    bytes: int | None = None
    world_size: int | None = None
    mesh: dict[str, int] | None = None
    time: float | None = None  # seconds since the epoch
    best: bool = False  # it has the best validation, and is kept for that
    verified: bool = False  # all blocks were read, and match their checksums
    problems: list[str]


def list_checkpoints(root: StoragePath, *, verify: bool = False) -> list[CheckpointSummary]:
    """Return all checkpoints, ascending by step. With `verify` their files are read whole."""
    summaries, best = [], None
    for step in sorted(listed_steps(root).union(steps_in(root)), reverse=True):
        folder, pinned_by = root.child(directory_of(step)), pins(root, step)
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            summaries.append(CheckpointSummary(step=step, pinned_by=pinned_by, problems=[str(error)]))
            continue
        best = manifest.progress.get("best_step") if best is None else best
        wrong = problems(folder, manifest, verify=True) if verify else []
        summaries.append(
            CheckpointSummary(
                step=step,
                pinned_by=pinned_by,
                bytes=sum(file.size for file in manifest.files),
                world_size=manifest.world_size,
                mesh=manifest.tensors.mesh,
                time=manifest.time,
                best=best == step,
                verified=verify and not wrong,
                problems=wrong,
            )
        )
    return summaries[::-1]
