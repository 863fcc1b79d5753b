"""The keys of the `distill` job."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.config import DataPath, PathView, Section
from ropewalk.jobs.runs.models.find_model import ModelRef, check_model_run, find_model
from ropewalk.jobs.training.loop.config import ModelConfig, OptimConfig, TrainingConfig
from ropewalk.jobs.training.loop.token_data import Data, check_data
from ropewalk.jobs.training.pruning.config import PruneConfig

Loss = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


class StudentConfig(Section):
    """Exactly one of: cut out of the teacher, a preset, a Hugging Face directory or configuration, a run that trained a model."""

    prune: PruneConfig | None = Field(default=None, description="cut out of the teacher: {layers: 24, width: 0.75, heads: 6}")
    preset: Literal["tiny", "small", "smollm-135m"] | None = Field(
        default=None, description="a built-in model size, from scratch"
    )
    path: DataPath | None = Field(default=None, description="a Hugging Face directory: its configuration and weights")
    config: dict[str, Any] | None = Field(default=None, description="a Hugging Face configuration with model_type, from scratch")
    run: str | None = Field(default=None, description="the id or directory of a run: the model and weights that it trained")
    step: int | None = Field(default=None, ge=1, description="with run: the checkpoint's step; unset: its newest complete one")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.prune, self.preset, self.path, self.config, self.run].count(None) != 4:
            raise ValueError("set exactly one of prune, preset, path, config and run")
        if self.prune is None:
            self.model()
        return self

    def model(self) -> ModelConfig:
        """The student that is not cut out of the teacher. Raises ValidationError."""
        return ModelConfig(preset=self.preset, path=self.path, config=self.config, run=self.run, step=self.step)


class LogitsConfig(Section):
    """Logits of the teacher that are computed once, and kept beside the data: equal teacher, data and seed share one copy."""

    method: Literal["sampled", "top_k"] = Field(
        default="sampled",
        description="sampled: tokens drawn by the teacher's probabilities, whose mean is exact (Sparse Logit Sampling, arXiv "
        "2503.16870); top_k: the likeliest tokens, scaled to sum up to 1, which is biased: what is left out counts as impossible",
    )
    size: int = Field(default=50, ge=1, le=1024, description="draws, or likeliest tokens, of each position")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the draws")
    path: DataPath | None = Field(default=None, description="where they are kept; unset: beside the data, else in the run")


class OnPolicyConfig(Section):
    """Samples that the student writes itself, from beginnings of the data's sequences (GKD, arXiv 2306.13649)."""

    share: float = Field(default=0.5, gt=0, le=1, description="lambda: share of samples that it writes; the rest is text")
    prompt_tokens: int = Field(default=64, ge=1, description="tokens of a sequence that the student goes on from")
    max_new_tokens: int = Field(default=64, ge=1, description="tokens that it writes at most; an end of text ends it before")
    temperature: float = Field(default=1.0, gt=0, description="temperature of its sampling")
    chunk: int = Field(default=8, ge=1, description="samples that are drawn, kept and, after a kill, made again together")


class ShareConfig(Section):
    """Layers that share weights: each group's are trained and kept once, and an export has them in each of its layers."""

    groups: int = Field(ge=1, description="groups of neighbouring layers, as equal as they can be")
    values: Literal["first", "mean"] = Field(
        default="first", description="what a group begins with: its first layer, or the mean"
    )


class DistillOptimConfig(OptimConfig):
    """AdamW for a student that is cut out of a trained model: smaller steps than from scratch."""

    weight_decay: float = Field(default=0.0, ge=0, description="decay of weights with two or more dimensions")


class BaselineConfig(Section):
    """The same student trained on the same tokens by cross entropy alone: each of the two for so many seeds, a run each."""

    seeds: int = Field(default=3, ge=2, le=20, description="seeds of each side: this run's, and the following ones")


class DistillConfig(TrainingConfig):
    """The keys of a distillation. A sample is a sequence of `seq_len` tokens."""

    teacher: ModelRef = Field(
        description="a run (id, path or latest): its newest complete checkpoint; or a Hugging Face directory"
    )
    student: StudentConfig = Field(
        description="the model that learns: {prune: {layers: 24, width: 0.75}}, {preset: small}, {path: DIR}"
    )
    data: Data = Field(description="a data set made by preprocess with the teacher's tokenizer, or a list of {path, weight}")
    seq_len: int = Field(default=1024, ge=2, description="tokens of a sequence")
    on_corrupt: Literal["error", "quarantine"] = Field(default="error", description="what to do about a damaged shard")
    loss: Loss = Field(default="forward_kl", description="how far the student is from its teacher")
    beta: float = Field(default=0.5, gt=0, lt=1, description="jensen_shannon: the teacher's share of the mean distribution")
    temperature: float = Field(
        default=1.0, gt=0, description="temperature of both distributions; the loss is scaled by its square"
    )
    alpha: float = Field(
        default=0.0, ge=0, le=1, description="share of cross entropy with the text in the loss; 1: no teacher, the baseline"
    )
    teacher_logits: Literal["online", "cached"] = Field(
        default="online",
        description="online: the teacher computes beside the student; cached: once, a few tokens of each position",
    )
    on_policy: OnPolicyConfig | None = Field(
        default=None, description="learn from what the student writes too, as its teacher would go on, not from text alone"
    )
    cache: LogitsConfig = Field(default=LogitsConfig(), description="teacher_logits: cached: what is kept of them")
    share: ShareConfig | None = Field(
        default=None, description="layers of the student share weights, in groups of neighbours; unset: each has its own"
    )
    optim: DistillOptimConfig = Field(default=DistillOptimConfig(), description="optimizer and learning rate")
    baseline: BaselineConfig | None = Field(
        default=None,
        description="train the same student by cross entropy alone too, over seeds, and let the report say which is better",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.teacher_logits == "cached" and self.loss != "forward_kl":
            raise ValueError(
                f"teacher_logits: cached logits are a few tokens of each position, and {self.loss} of them is biased;"
                " choose loss: forward_kl, or teacher_logits: online"
            )
        self._check_on_policy()
        if self.alpha == 1 and self.baseline is not None:
            raise ValueError("alpha: at 1 the teacher teaches nothing, and there is nothing to compare; choose a smaller one")
        return self

    @property
    def needs_others(self) -> bool:
        """With a baseline it waits for the runs that it is compared with."""
        return self.baseline is not None

    def _check_on_policy(self) -> None:
        own = self.on_policy
        if own is None:
            return
        if self.teacher_logits == "cached":
            raise ValueError("on_policy: what the student will write is not known before; choose teacher_logits: online")
        if self.alpha:
            raise ValueError(
                f"alpha: {self.alpha:g} with on_policy would teach the student what it writes itself; leave alpha out, and set "
                "on_policy.share below 1 for text in the mix"
            )
        if own.prompt_tokens + own.max_new_tokens > self.seq_len + 1:
            raise ValueError(
                f"on_policy: {own.prompt_tokens} + {own.max_new_tokens} tokens do not fit in seq_len, {self.seq_len}; lower "
                "prompt_tokens or max_new_tokens, or raise seq_len"
            )

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the teacher, the student and local data sets are there."""
        check_data(self.data, here)
        teacher = here(self.teacher) if self.teacher.startswith("/") else Path(self.teacher)
        if teacher is not None:
            find_model(str(teacher))
        for key, run in {
            "student.run": self.student.run,
            "start_from.run": self.start_from.run if self.start_from is not None else None,
        }.items():
            if run is not None:
                check_model_run(key, run)
