"""Certification of a restored state: steps that are done again must repeat the recorded losses, bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.update.step import StepStats
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest

Losses = dict[int, tuple[int, float]]  # by step, with the position after it
MOST_STEPS = 100  # that are compared
_OTHER_RUN = ("changed_by_user", "moved_here")  # events after which losses need not be the same


@dataclass(frozen=True)
class Certificate:
    """Losses that the steps after a restored state had before."""

    losses: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    step: int = 0  # of that state
    tier: Literal["memory", "storage"] = "storage"  # from which it was read

    def repeats(self, stats: StepStats) -> bool:
        """Return False if a step has another loss than before, on the same samples."""
        position, loss = self.losses.get(stats.step, (None, None))
        return position != stats.position or loss == stats.loss


def recorded_losses(run: RunDir, config: TrainingConfig, manifest: CheckpointManifest, world_size: int) -> Losses:
    """Return the losses that the steps after a checkpoint must repeat.

    There are none if they were not computed by as many ranks, with the same keys and deterministic kernels.
    """
    if not config.precision.deterministic or config.batch.micro_batch == "auto":
        return {}
    events = [event for event in run.read_events(afresh=True) if event["time"] > manifest.time]
    sizes = [event["world_size"] for event in events if event["event"] == "resumed"]
    if any(event["event"] in _OTHER_RUN for event in events) or (sizes or [manifest.world_size])[-1] != world_size:
        return {}
    losses: Losses = {}
    for line in run.read_metrics():
        if "train/loss" not in line:
            continue
        # a line invalidates earlier ones of the same and later steps, which were undone
        losses = {step: loss for step, loss in losses.items() if step < line["step"]}
        if manifest.step < line["step"] <= manifest.step + MOST_STEPS and line["train/loss"] is not None:
            losses[line["step"]] = int(line["train/position"]), line["train/loss"]
    return losses
