"""The keys of the `distill` job."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.input_paths import DataPath, ModelPath, PathView
from ropewalk.cluster.section import Section
from ropewalk.datapipe.loader.config import LoaderConfig
from ropewalk.jobs.runs.models.find_model import ModelRef, find_model
from ropewalk.jobs.training.loop.architecture.fit import check_model
from ropewalk.jobs.training.loop.config import USUAL, TrainingConfig
from ropewalk.jobs.training.loop.model_keys import PRESETS, ModelConfig, Preset, require_one
from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.token_data import Data, check_data
from ropewalk.jobs.training.pruning.config import PruneConfig

Loss = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


class StudentConfig(Section):
    """Exactly one of: pruned from the teacher, a preset, a Hugging Face directory or configuration, a trained run."""

    prune: PruneConfig | None = Field(default=None, description="pruned from the teacher: {layers: 24, width: 0.75, heads: 6}")
    preset: Preset | None = Field(default=None, description=f"a built-in model size, from scratch: {PRESETS}")
    path: ModelPath | None = Field(
        default=None,
        description="Hugging Face directory, or name on the hub (ORG/NAME[@REVISION]): its configuration and weights",
    )
    config: dict[str, Any] | None = Field(default=None, description="a Hugging Face configuration with model_type, from scratch")
    run: str | None = Field(default=None, description="id or directory of a run: its trained model")
    step: int | None = Field(default=None, ge=1, description="with run: the checkpoint's step; unset: its newest complete one")

    @model_validator(mode="after")
    def _one(self) -> Self:
        require_one("student", self, "prune", "preset", "path", "config", "run")
        if self.prune is None:
            self.model()
        return self

    def model(self) -> ModelConfig:
        """Return the configuration of a student that is not pruned from the teacher. Raises ValidationError."""
        return ModelConfig(preset=self.preset, path=self.path, config=self.config, run=self.run, step=self.step)


class LogitsConfig(Section):
    """The teacher's logits, computed once and stored beside the data; runs with equal teacher, data and seed share a copy."""

    method: Literal["sampled", "top_k"] = Field(
        default="sampled",
        description="sampled: tokens sampled from the teacher, unbiased (Sparse Logit Sampling, arXiv 2503.16870); "
        "top_k: the likeliest tokens, rescaled to sum up to 1, which is biased: all others count as impossible",
    )
    size: int = Field(default=50, ge=1, le=1024, description="samples, or likeliest tokens, per position")
    seed: int = Field(default=0, ge=0, lt=2**32, description="random seed of the samples")
    path: DataPath | None = Field(default=None, description="directory; unset: beside the data, else in the run")


class OnPolicyConfig(Section):
    """Samples that the student generates from the beginnings of the data's sequences (GKD, arXiv 2306.13649)."""

    share: float = Field(
        default=0.5, gt=0, le=1, description="lambda: share of samples that the student generates; the rest is text"
    )
    prompt_tokens: int = Field(default=64, ge=1, description="tokens of a sequence that are the prompt")
    max_new_tokens: int = Field(default=64, ge=1, description="maximum tokens to generate, unless the text ends before")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    chunk: int = Field(
        default=8, ge=1, description="samples that are generated and stored together, and generated again after a kill"
    )


class ShareConfig(Section):
    """Layers that share weights: each group's weights are trained and stored once; an export has them in each of its layers."""

    groups: int = Field(ge=1, description="number of groups of neighbouring layers, of nearly equal size")
    values: Literal["first", "mean"] = Field(
        default="first", description="initial weights of a group: its first layer, or the mean"
    )


class DistillOptimConfig(OptimConfig):
    """AdamW for a student pruned from a trained model: smaller steps than from scratch."""

    weight_decay: float = Field(default=0.0, ge=0, description="decay of weights with two or more dimensions")


class BaselineConfig(Section):
    """Comparison with the same student trained on the same tokens by cross entropy alone: one run per side and seed."""

    seeds: int = Field(default=3, ge=2, le=20, description="seeds per side, starting with this run's")


class DistillConfig(TrainingConfig):
    """The keys of a distillation. A sample is a sequence of `seq_len` tokens."""

    usual_keys = ("teacher", "student.prune", "student.preset", "student.path", "data", "alpha", "baseline", *USUAL)

    teacher: ModelRef = Field(
        description="run (id, path or latest) with a complete checkpoint, Hugging Face directory, or name on the hub"
    )
    student: StudentConfig = Field(description="model to train: {prune: {layers: 24, width: 0.75}}, {preset: small}, {path: DIR}")
    data: Data = Field(description="a data set made by preprocess with the teacher's tokenizer, or a list of {path, weight}")
    seq_len: int = Field(default=1024, ge=2, description="tokens of a sequence")
    on_corrupt: Literal["error", "quarantine"] = Field(default="error", description="reaction to a damaged shard")
    loader: LoaderConfig = Field(default=LoaderConfig(), description="order of the sequences")
    loss: Loss = Field(default="forward_kl", description="divergence from the teacher")
    beta: float = Field(default=0.5, gt=0, lt=1, description="jensen_shannon: weight of the teacher in the mean distribution")
    temperature: float = Field(
        default=1.0, gt=0, description="temperature of both distributions; the loss is scaled by its square"
    )
    alpha: float = Field(
        default=0.0, ge=0, le=1, description="weight of cross entropy with the text in the loss; 1: no teacher, the baseline"
    )
    teacher_logits: Literal["online", "cached"] = Field(
        default="online", description="online: the teacher runs beside the student; cached: once, a few tokens per position"
    )
    on_policy: OnPolicyConfig | None = Field(
        default=None, description="train on samples of the student too, with the teacher's distribution, not on text alone"
    )
    cache: LogitsConfig = Field(default=LogitsConfig(), description="teacher_logits: cached: their selection and location")
    share: ShareConfig | None = Field(
        default=None, description="share weights among neighbouring layers of the student; unset: none"
    )
    optim: DistillOptimConfig = Field(default=DistillOptimConfig(), description="optimizer and learning rate")
    baseline: BaselineConfig | None = Field(
        default=None,
        description="also train the same student by cross entropy alone, with several seeds, and compare in the report",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.teacher_logits == "cached" and self.loss != "forward_kl":
            raise ValueError(
                f"teacher_logits: cached logits are a few tokens per position, for which {self.loss} is biased;"
                " choose loss: forward_kl, or teacher_logits: online"
            )
        self._check_on_policy()
        if self.alpha == 1 and self.baseline is not None:
            raise ValueError("alpha: at 1 the teacher has no effect, so that a baseline compares nothing; choose a smaller value")
        return self

    @property
    def needs_others(self) -> bool:
        """True if the run waits for the runs of its baseline."""
        return self.baseline is not None

    def frozen_model(self) -> str | None:
        return self.teacher if self.teacher_logits == "online" and self.alpha < 1 else None

    def _check_on_policy(self) -> None:
        keys = self.on_policy
        if keys is None:
            return
        if self.teacher_logits == "cached":
            raise ValueError("on_policy: samples of the student cannot be cached in advance; choose teacher_logits: online")
        if self.alpha:
            raise ValueError(
                f"alpha: {self.alpha:g} with on_policy would train the student on its own samples as text; remove alpha, and set "
                "on_policy.share below 1 for text in the mix"
            )
        if keys.prompt_tokens + keys.max_new_tokens > self.seq_len + 1:
            raise ValueError(
                f"on_policy: {keys.prompt_tokens} + {keys.max_new_tokens} tokens do not fit in seq_len, {self.seq_len}; lower "
                "prompt_tokens or max_new_tokens, or raise seq_len"
            )

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the teacher, the student and local data sets exist."""
        super().preflight(here)
        manifests = check_data(self.data, here, self.seq_len)
        teacher = here(self.teacher) if self.teacher.startswith("/") else Path(self.teacher)
        if teacher is not None:
            find_model(str(teacher))
        if self.student.prune is None:
            check_model("student", self.student.model(), here, manifests=manifests, seq_len=self.seq_len)
