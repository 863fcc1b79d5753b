"""Where a training run stands: all of its state that is not a tensor, as plain values."""

from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.training.spike import LossWatch
from sharding.manifest import CheckpointManifest


@dataclass
class Progress:
    """Kept in each checkpoint's manifest, so that a resumed run decides as the uninterrupted one."""

    step: int = 0  # batches learnt, or left out
    position: int = 0  # the next sample of the run
    loss: float | None = None
    watch: LossWatch = field(default_factory=LossWatch)
    validation: dict[str, float] = field(default_factory=dict)
    best_validation: float | None = None
    validations_without_gain: int = 0
    finished: bool = False

    @classmethod
    def of(cls, manifest: CheckpointManifest) -> "Progress":
        """As a checkpoint says."""
        values = dict(manifest.progress)
        watch = LossWatch(**values.pop("watch", {}))
        return cls(**{**values, "step": manifest.step, "position": manifest.position, "watch": watch})

    def figures(self) -> dict[str, Any]:
        """All but step and position, which a manifest holds by themselves."""
        return {key: value for key, value in asdict(self).items() if key not in {"step", "position"}}

    def gained(self, loss: float) -> bool:
        """Count a validation; whether it was the best so far."""
        better = self.best_validation is None or loss < self.best_validation
        self.best_validation = loss if better else self.best_validation
        self.validations_without_gain = 0 if better else self.validations_without_gain + 1
        return better
