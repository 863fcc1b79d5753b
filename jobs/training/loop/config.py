"""Configuration of the training loop: samples, anomalies, and the keys of all its jobs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.config import RUN_KEYS, ModelJobConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import PathView
from ropewalk.cluster.run.node_memory import MEMORY_VARIABLE, SHARED_MEMORY
from ropewalk.cluster.section import Section
from ropewalk.jobs.runs.models.find_model import check_model_run
from ropewalk.jobs.training.loop.attention import Kernel, kernel_problem
from ropewalk.jobs.training.loop.devices import DEVICES
from ropewalk.jobs.training.loop.integrity_keys import IntegrityConfig
from ropewalk.jobs.training.loop.model_keys import LoraConfig, ModelConfig
from ropewalk.jobs.training.loop.optim_keys import WARMUP_SHARE, WARMUP_STEPS, OptimConfig, warmup_problem
from ropewalk.jobs.training.loop.validation_keys import MOST_VALIDATED, VALIDATIONS, ValidationConfig, validation_schedule
from ropewalk.sharding.config import (
    FLOAT8_KEYS,
    FLOAT8_MULTIPLE,
    FLOAT8_NEEDS,
    TENSOR_KEYS,
    BatchConfig,
    CheckpointConfig,
    ParallelConfig,
    PrecisionConfig,
    check_mesh,
)

MOST_BF16_BETA = 0.99  # bf16 has 8 significant bits: a change below 1/512 of a moment is lost


def fill_defaults(
    values: Mapping[str, Any],
    lora_lr: float,
    *,
    validations: int = VALIDATIONS,
    most_validated: int = MOST_VALIDATED,
) -> dict[str, Any]:
    """Fill in keys that depend on others, for a job that adapts a trained model; run.yaml shows them.

    These are the learning rate of an adapter, and the validation schedule.
    """
    filled = dict(values)
    if filled.get("lora") is not None and isinstance(filled.get("optim", {}), dict):
        filled["optim"] = {"lr": lora_lr, **filled.get("optim", {})}
    steps, validation = _number(filled.get("steps")), filled.get("validation", {})
    if isinstance(validation, dict) and steps is not None:
        batch = filled.get("batch")
        samples = _number(batch.get("global_batch")) if isinstance(batch, dict) else None
        every = _number(validation.get("every_steps"))
        schedule = validation_schedule(steps, samples or BatchConfig().global_batch, every, validations, most_validated)
        filled["validation"] = {**schedule, **validation}
    return filled


def fill_warmup(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in `optim.warmup_steps`, whose default depends on `steps`."""
    steps, optim = _number(values.get("steps")), values.get("optim", {})
    if steps is None or not isinstance(optim, dict):
        return dict(values)
    return {**values, "optim": {"warmup_steps": min(WARMUP_STEPS, steps // WARMUP_SHARE), **optim}}


def check_keep_zeros(config: "TrainingConfig", lora: LoraConfig | None) -> None:
    """Raise ValueError for keep_zeros with an adapter: pruned weights would be neither trained nor kept at zero."""
    if config.keep_zeros and lora is not None:
        raise ValueError(
            "keep_zeros: with lora the pruned weights are frozen, and merging the adapter fills their zeros;"
            " remove lora to train them, or remove keep_zeros and prune the merged model with compress"
        )


def _number(value: Any) -> int | None:
    """Parse a positive integer from a job file or command line; None if it is not one, which validation of the key reports."""
    word = str(value)
    return int(word) or None if word.isdecimal() else None


class SamplesConfig(Section):
    """Prompts that the model continues at every validation, for people to read: `tables/samples.json` of the run, and W&B."""

    prompts: list[str] = Field(min_length=1, max_length=64, description="texts to continue, or first messages of chats")
    max_new_tokens: int = Field(default=48, ge=1, description="tokens to generate after each prompt; as many forward passes")


class AnomalyConfig(Section):
    """Reaction to a loss that is NaN or spikes."""

    policy: Literal["stop", "skip", "rollback"] = Field(
        default="stop", description="end the run, skip the batch, or roll back to the last checkpoint and skip it"
    )
    spike_factor: float | None = Field(
        default=3.0,
        gt=1,
        description="a loss above this multiple of its running mean, and outside its recent noise, is a spike; null disables",
    )
    max_anomalies: int = Field(default=10, ge=1, description="fail after this many anomalies in one attempt, with any policy")


class EmaConfig(Section):
    """An exponential moving average of the weights: checkpointed, and exported with `export --ema`."""

    decay: float = Field(
        default=0.999, gt=0, lt=1, description="weight of the previous average at each step; smaller in the first steps"
    )


class StartFrom(Section):
    """Another run's checkpoint whose full state this run continues: weights, optimizer, data position and step."""

    run: str = Field(description="the id of a run under the same root, or its directory")
    step: int | None = Field(default=None, ge=1, description="the checkpoint's step; unset: its newest complete one")


# the usual keys of a training job, after its model and its data
USUAL = (
    *("steps", "seq_len", "batch.global_batch", "batch.micro_batch", "optim.lr", "optim.warmup_steps", "checkpoint.every_steps"),
    *("checkpoint.keep", "validation.every_steps", "seed", *RUN_KEYS),
)


class TrainingConfig(ModelJobConfig):
    """The keys of every training job."""

    hidden_keys: ClassVar[frozenset[str]] = TENSOR_KEYS | FLOAT8_KEYS

    steps: int = Field(ge=1, description="optimizer steps of the whole run")
    batch: BatchConfig = Field(default=BatchConfig(), description="batch sizes")
    optim: OptimConfig = Field(default=OptimConfig(), description="optimizer and learning rate")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="checkpoint interval and retention")
    validation: ValidationConfig = Field(default=ValidationConfig(), description="validation interval, size, early stopping")
    samples: SamplesConfig | None = Field(
        default=None, description="prompts that the model continues at every validation; unset: none"
    )
    anomaly: AnomalyConfig = Field(default=AnomalyConfig(), description="reaction to a loss that is NaN or spikes")
    integrity: IntegrityConfig | None = Field(default=None, description="checks for silent corruption; unset: none")
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="division of the model among the ranks")
    precision: PrecisionConfig = Field(default=PrecisionConfig(), description="number formats")
    ema: EmaConfig | None = Field(default=None, description="moving average of the weights; unset: none")
    start_from: StartFrom | None = Field(default=None, description="continue the state of another run's checkpoint")
    keep_zeros: bool = Field(default=False, description="keep zero weights of matrices at zero, to train a pruned model")
    log_every: int = Field(default=1, ge=1, description="steps between two lines of metrics")
    layers_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between two measurements of norms and histograms of gradients and weights; unset: none",
    )

    @model_validator(mode="before")
    @classmethod
    def _warm_up(cls, values: Any) -> Any:
        return fill_warmup(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        self.parallel.refuse_tensor(self.tensor_obstacle())
        self.precision.refuse_float8(self.float8_obstacle())
        return self

    def tensor_obstacle(self) -> str | None:
        """Return the reason why this job cannot use tensor parallelism; None: it can."""
        return "only the jobs pretrain and finetune support tensor parallelism"

    def float8_obstacle(self) -> str | None:
        """Return the reason why this job cannot compute in float8; None: it can."""
        return "only the jobs pretrain and finetune support float8"

    def frozen_model(self) -> str | ModelConfig | None:
        """Return the teacher or reference whose copy lies on the ranks beside the trained model; None: there is none."""
        return None

    def whole_models(self) -> int:
        """Return the number of processes on each node, besides the ranks, that hold the whole model."""
        return 0

    def required_environment(self) -> Mapping[str, str]:
        memory = {MEMORY_VARIABLE: SHARED_MEMORY} if self.checkpoint.memory_every_steps is not None else {}
        return {**self.precision.environment(), **memory}

    def check_keys(self) -> None:
        """Raise ConfigError if the warm-up is as long as the run, or the ranks cannot form the mesh."""
        if problem := warmup_problem(self.optim, self.steps):
            raise ConfigError(problem)
        if self.optim.base_width is not None and getattr(self, "lora", None) is not None:
            raise ConfigError("optim.base_width: the rate of an adapter does not depend on the width; remove base_width or lora")
        if self.precision.optimizer == "bf16" and self.optim.betas[1] > MOST_BF16_BETA:
            raise ConfigError(
                f"optim.betas: {self.optim.betas[1]:g} is too close to 1 for moments in bf16, whose changes would be rounded"
                f" away; set optim.betas=[{self.optim.betas[0]:g},0.95], or precision.optimizer=fp32"
            )
        if (gpu := self.parallel.gpu_model) is not None and gpu not in DEVICES:
            raise ConfigError(f"parallel.gpu_model: {gpu} is not in the table; name one of {', '.join(DEVICES)}, or remove it")
        if self.resources.model_fields_set & {"gpus", "ranks_per_node"}:
            check_mesh(self.parallel, self.resources)

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError if the ranks cannot form the mesh, or a named run or model does not exist."""
        check_mesh(self.parallel, self.resources)
        if self.start_from is not None:
            check_model_run("start_from.run", self.start_from.run)


class NextTokenConfig(TrainingConfig):
    """The keys of the jobs that predict the next token, unless they are given another objective."""

    hidden_keys: ClassVar[frozenset[str]] = frozenset()

    objective: str | None = Field(
        default=None,
        description="MODULE:NAME of your own objective, such as mine:ZLoss; unset: cross entropy of the next token",
    )
    z_loss: float | None = Field(
        default=None,
        gt=0,
        description="weight of the squared logarithm of the softmax denominator in the gradient, for example 1e-4, which keeps"
        " logits small (z-loss, arXiv 2204.02311); the reported loss stays the cross entropy; unset: none",
    )

    attention: Kernel = Field(
        default="sdpa",
        description="kernel of attention: torch's (sdpa); FlashAttention 2 (flash), which needs GPUs, bf16 and a package; or a"
        " compiled one (flex), which needs GPUs and skips what documents may not see. No test has run flash or flex on GPUs",
    )

    @model_validator(mode="after")
    def _one_loss(self) -> Self:
        if self.objective is not None and self.z_loss is not None:
            raise ValueError("z_loss is part of the built-in loss, and objective replaces it: remove one of the two")
        return self

    def own_code(self) -> bool:
        return self.objective is not None

    def tensor_obstacle(self) -> str | None:
        lora: LoraConfig | None = getattr(self, "lora", None)
        obstacles = {
            "lora.dora": lora is not None and lora.dora,  # a row's norm is a sum over ranks
            "lora.dropout": lora is not None and lora.dropout > 0,  # ranks would drop the same columns of their parts
            "qat": getattr(self, "qat", None) is not None,
        }
        obstacle = next((key for key, present in obstacles.items() if present), None)
        return f"it does not combine with {obstacle}" if obstacle is not None else None

    def float8_obstacle(self) -> str | None:
        obstacles = {
            "lora, whose frozen weights would get gradients": getattr(self, "lora", None) is not None,
            "qat": getattr(self, "qat", None) is not None,
        }
        obstacle = next((key for key, present in obstacles.items() if present), None)
        return f"it does not combine with {obstacle}" if obstacle is not None else None

    def packing_key(self) -> str | None:
        """Return the key by which sequences hold several documents that do not see each other; None: they do not."""
        return None

    def check_keys(self) -> None:
        super().check_keys()
        key = self.packing_key()
        if self.attention == "flash" and key is not None and self.batch.micro_batch != 1:
            raise ConfigError(
                f"attention: flash separates documents only in micro-batches of one sequence; set batch.micro_batch=1,"
                f" attention=flex, or {key}=false"
            )
        if self.attention == "flash" and self.precision.compute == "fp32":
            raise ConfigError("attention: flash computes in bf16 only; remove precision.compute, or set attention=sdpa")
        if self.precision.float8 == "rowwise":
            self._check_float8()
        if self.objective is not None:
            from ropewalk.jobs.training.loop.objective import make_objective  # imports torch, as the objective does

            make_objective(self.objective)

    def _check_float8(self) -> None:
        tokens: int | None = getattr(self, "seq_len", None)
        if self.precision.compute == "fp32":
            raise ConfigError("precision.float8: rowwise returns products in bf16; remove precision.compute")
        if tokens is not None and tokens % FLOAT8_MULTIPLE:
            raise ConfigError(
                f"precision.float8: rowwise needs sequences of a multiple of {FLOAT8_MULTIPLE} tokens; change seq_len={tokens}"
            )
        device = DEVICES.get(self.parallel.gpu_model or "")
        if (device is not None and not device.float8) or ("gpus" in self.resources.model_fields_set and not self.resources.gpus):
            raise ConfigError(FLOAT8_NEEDS)

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError if the nodes lack what the kernel of attention, or float8, needs."""
        super().preflight(here)
        if (problem := kernel_problem(self.attention, gpus=self.resources.gpus)) is not None:
            raise ConfigError(problem)
        if self.precision.float8 == "rowwise" and not self.resources.gpus:
            raise ConfigError(FLOAT8_NEEDS)
