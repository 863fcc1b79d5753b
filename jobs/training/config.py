"""Configuration of the training loop: model, optimizer, validation, anomalies."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cluster.config import DataPath, JobConfig, Section
from sharding.config import BatchConfig, CheckpointConfig, FsdpConfig


class ModelConfig(Section):
    """Exactly one of: a preset, a Hugging Face directory, a Hugging Face configuration."""

    preset: Literal["tiny", "small", "smollm-135m"] | None = Field(default=None, description="a model of our own measure")
    path: DataPath | None = Field(default=None, description="a Hugging Face directory: its configuration and weights")
    config: dict[str, Any] | None = Field(default=None, description="a Hugging Face configuration with model_type")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.preset, self.path, self.config].count(None) != 2:
            raise ValueError("set exactly one of preset, path and config")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs model_type, such as llama")
        return self


class OptimConfig(Section):
    """AdamW and its learning rate."""

    lr: float = Field(default=3e-4, gt=0, description="highest learning rate")
    weight_decay: float = Field(default=0.1, ge=0, description="of weights with two or more dimensions")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="decay of Adam's two moments")
    eps: float = Field(default=1e-8, gt=0, description="Adam's smallest denominator")
    grad_clip: float = Field(default=1.0, ge=0, description="largest norm of the gradient; 0: no limit")
    warmup_steps: int = Field(default=20, ge=0, description="steps of linear warm-up")
    schedule: Literal["cosine", "wsd", "constant"] = Field(default="cosine", description="after the warm-up")
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="learning rate at the end, of the highest")
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="wsd: share of all steps that decay at the end")

    @model_validator(mode="after")
    def _betas(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must lie in 0..1")
        return self


class ValidationConfig(Section):
    """When the held-out split is scored."""

    every_steps: int = Field(default=100, ge=1, description="steps between two validations; one follows at the end")
    max_sequences: int = Field(default=256, ge=1, description="sequences of the held-out split to score")
    patience: int | None = Field(default=None, ge=1, description="stop after so many validations without a better loss")


class AnomalyConfig(Section):
    """What to do when the loss is not a number, or jumps."""

    policy: Literal["stop", "skip", "rollback"] = Field(
        default="stop", description="end the run, leave the batch out, or go back to the checkpoint and leave it out"
    )
    spike_factor: float | None = Field(
        default=3.0, gt=1, description="a loss above so many times its running mean is a spike; null: never"
    )
    most: int = Field(default=10, ge=1, description="anomalies of one attempt after which it ends all the same")


class StartFrom(Section):
    """Another run's checkpoint to begin with: weights, optimizer, data position and step."""

    run: str = Field(description="the run's id (among the same runs), or its directory")
    step: int | None = Field(default=None, ge=1, description="the checkpoint's step; unset: its newest")


class TrainingConfig(JobConfig):
    """The keys of every job that trains."""

    steps: int = Field(ge=1, description="optimizer steps of the whole run")
    batch: BatchConfig = Field(default=BatchConfig(), description="how many sequences a step takes")
    optim: OptimConfig = Field(default=OptimConfig(), description="optimizer and learning rate")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="when the state is saved")
    validation: ValidationConfig = Field(default=ValidationConfig(), description="when the held-out split is scored")
    anomaly: AnomalyConfig = Field(default=AnomalyConfig(), description="what to do about a loss that is out of order")
    fsdp: FsdpConfig = Field(default=FsdpConfig(), description="how parameters are split")
    start_from: StartFrom | None = Field(default=None, description="go on from another run's checkpoint, by reference")
    log_every: int = Field(default=1, ge=1, description="steps between two lines of metrics")
