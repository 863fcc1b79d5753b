"""Configuration of the training loop: model, optimizer, validation, anomalies."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.config import DataPath, JobConfig, Section
from ropewalk.sharding.config import BatchConfig, CheckpointConfig, ParallelConfig, PrecisionConfig

VALIDATIONS = 20  # of a run that adapts a model, unless the job file says otherwise
PATIENCE = 3
LEAST_VALIDATED, MOST_VALIDATED = 16, 256  # samples of each of them
LEARNT_A_VALIDATED = 2  # samples that are learnt on for each that is validated, unless that were fewer than the least


class ModelConfig(Section):
    """Exactly one of: a preset, a Hugging Face directory, a Hugging Face configuration, a run that trained a model."""

    preset: Literal["tiny", "small", "smollm-135m"] | None = Field(default=None, description="a built-in model size")
    path: DataPath | None = Field(default=None, description="a Hugging Face directory: its configuration and weights")
    config: dict[str, Any] | None = Field(default=None, description="a Hugging Face configuration with model_type")
    run: str | None = Field(
        default=None, description="the id or directory of a run: the model and weights that it trained, from step 0 on"
    )
    step: int | None = Field(default=None, ge=1, description="with run: the checkpoint's step; unset: its newest complete one")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.preset, self.path, self.config, self.run].count(None) != 3:
            raise ValueError("set exactly one of preset, path, config and run")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs model_type, such as llama")
        if self.step is not None and self.run is None:
            raise ValueError("step names a checkpoint of run; set run too")
        return self


class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685) beside frozen weights: what is trained, and all that a checkpoint holds."""

    rank: int = Field(default=16, ge=1, description="rank of the two matrices beside each weight")
    alpha: float | None = Field(default=None, gt=0, description="scale of the adapter, over its rank; unset: twice the rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of the adapter's input")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear",
        description="names of the layers that get an adapter, such as [q_proj, v_proj]; all-linear: all but the head",
    )
    dora: bool = Field(
        default=False, description="learn each weight's magnitude apart from its direction (DoRA, arXiv 2402.09353)"
    )
    rslora: bool = Field(default=False, description="divide alpha by the root of the rank (rsLoRA, arXiv 2312.03732)")


class GridConfig(Section):
    """A grid of few bits for the matrices of a model's layers: whole numbers times a scale."""

    type: Literal["int8", "int4"] = Field(default="int8", description="int8: a scale a row; int4: a scale a group of a row")
    group_size: int = Field(default=32, ge=1, description="int4: weights that share a scale")


def grid_word(value: Any) -> Any:
    """A bare word is a grid with all its defaults: `qat: int4`."""
    return {"type": value} if isinstance(value, str) else value


def adapting_defaults(
    values: Mapping[str, Any],
    lora_lr: float,
    *,
    validations: int = VALIDATIONS,
    most_validated: int = MOST_VALIDATED,
    patience: int | None = PATIENCE,
) -> dict[str, Any]:
    """The keys of a job that adapts a trained model, with those filled in that depend on others, so that run.yaml says them:
    the learning rate of an adapter, and validations of which the best is kept, and which end a run that has begun to overfit.
    """
    filled = dict(values)
    if filled.get("lora") is not None and isinstance(filled.get("optim", {}), dict):
        filled["optim"] = {"lr": lora_lr, **filled.get("optim", {})}
    steps, own = _number(filled.get("steps")), filled.get("validation", {})
    if isinstance(own, dict) and steps is not None:
        batch = filled.get("batch")
        samples = _number(batch.get("global_batch")) if isinstance(batch, dict) else None
        every = _number(own.get("every_steps"))
        often = _how_often(steps, samples or BatchConfig().global_batch, every, validations, most_validated)
        filled["validation"] = {**often, "patience": patience, "keep_best": True, **own}
    return filled


def check_keep_zeros(config: "TrainingConfig", lora: LoraConfig | None) -> None:
    """Raise ValueError where pruned weights would neither be trained nor stay pruned: beside an adapter."""
    if config.keep_zeros and lora is not None:
        raise ValueError(
            "keep_zeros: with lora the pruned weights are frozen, and what is merged into them fills their zeros;"
            " leave lora out to train them, or leave keep_zeros out and prune the merged model by compress"
        )


def _how_often(steps: int, samples: int, every: int | None, validations: int, most: int) -> dict[str, int]:
    """When a run of `steps` of so many samples is validated, and by how many: a short one would spend its time on it."""
    needed = math.ceil(LEARNT_A_VALIDATED * LEAST_VALIDATED / samples)
    every = every or max(1, steps // validations, min(needed, steps // 4))
    return {"every_steps": every, "max_sequences": min(most, max(LEAST_VALIDATED, every * samples // LEARNT_A_VALIDATED))}


def _number(value: Any) -> int | None:
    """A whole number above zero, as a job file or a command line gives it; None: it is none, which the key itself will say."""
    word = str(value)
    return int(word) or None if word.isdecimal() else None


class OptimConfig(Section):
    """AdamW and its learning rate."""

    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.1, ge=0, description="decay of weights with two or more dimensions")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="decay rates of Adam's two moments")
    eps: float = Field(default=1e-8, gt=0, description="epsilon added to Adam's denominator")
    grad_clip: float = Field(default=1.0, ge=0, description="clip gradients to this norm; 0 disables")
    warmup_steps: int = Field(default=20, ge=0, description="steps of linear warm-up")
    schedule: Literal["cosine", "wsd", "constant"] = Field(default="cosine", description="learning rate after the warm-up")
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="final learning rate, as a fraction of the peak")
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="wsd: fraction of all steps that decay at the end")
    layer_decay: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="multiply the learning rate by this, once for each layer from the head down; unset: all layers learn alike",
    )

    @model_validator(mode="after")
    def _betas(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must lie in 0..1")
        return self


class ValidationConfig(Section):
    """When the validation split is scored."""

    every_steps: int = Field(default=100, ge=1, description="steps between two validations; the last step is followed by one too")
    max_sequences: int = Field(default=256, ge=1, description="maximum sequences of the validation split to score")
    patience: int | None = Field(default=None, ge=1, description="stop after this many validations without a better loss")
    keep_best: bool = Field(
        default=False, description="save after a validation that is the best so far, and keep that checkpoint for export --best"
    )


class SamplesConfig(Section):
    """Prompts that the model continues at every validation, for people to read: `tables/samples.json` of the run, and W&B."""

    prompts: list[str] = Field(min_length=1, max_length=64, description="texts to continue, or the first messages of chats")
    max_new_tokens: int = Field(default=48, ge=1, description="tokens to write after each; as many forward passes")


class AnomalyConfig(Section):
    """What to do when the loss is NaN or spikes."""

    policy: Literal["stop", "skip", "rollback"] = Field(
        default="stop", description="end the run, skip the batch, or roll back to the last checkpoint and skip it"
    )
    spike_factor: float | None = Field(
        default=3.0,
        gt=1,
        description="a loss above this many times its running mean, and beyond its recent noise, is a spike; null disables",
    )
    max_anomalies: int = Field(default=10, ge=1, description="abort after this many in one attempt, whatever the policy")


class EmaConfig(Section):
    """A running mean of the weights beside them: checkpointed, and exported with `export --ema`."""

    decay: float = Field(default=0.999, gt=0, lt=1, description="what a step keeps of the mean; less in the first steps")


class StartFrom(Section):
    """Another run's checkpoint whose full state this run continues: weights, optimizer, data position and step."""

    run: str = Field(description="the id of a run under the same root, or its directory")
    step: int | None = Field(default=None, ge=1, description="the checkpoint's step; unset: its newest complete one")


class TrainingConfig(JobConfig):
    """The keys of every job that trains."""

    steps: int = Field(ge=1, description="optimizer steps of the whole run")
    batch: BatchConfig = Field(default=BatchConfig(), description="how many sequences a step learns from")
    optim: OptimConfig = Field(default=OptimConfig(), description="optimizer and learning rate")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="when the state is saved")
    validation: ValidationConfig = Field(default=ValidationConfig(), description="when the validation split is scored")
    samples: SamplesConfig | None = Field(
        default=None, description="prompts that the model continues whenever validation.every_steps is due; unset: none"
    )
    anomaly: AnomalyConfig = Field(default=AnomalyConfig(), description="what to do when the loss is NaN or spikes")
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="how the model is divided among the ranks")
    precision: PrecisionConfig = Field(default=PrecisionConfig(), description="number formats")
    ema: EmaConfig | None = Field(default=None, description="a running mean of the weights; unset: none")
    start_from: StartFrom | None = Field(default=None, description="continue from the state of another run's checkpoint")
    keep_zeros: bool = Field(default=False, description="weights of matrices that are zero stay zero: training a pruned model")
    log_every: int = Field(default=1, ge=1, description="steps between two lines of metrics")
    layers_every: int | None = Field(
        default=None, ge=1, description="steps between two looks at norms and histograms of gradients and weights; unset: none"
    )
