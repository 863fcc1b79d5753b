"""The keys of the `align` job."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ropewalk.cluster.config import CodeConfig, UnsetGpus
from ropewalk.cluster.errors import DataError
from ropewalk.cluster.input_paths import InputPath, PathView, Resolve
from ropewalk.cluster.section import Section, default_text
from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.config import template_name
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.align.methods import (
    METHODS,
    OPTIONAL_KEYS,
    default_betas,
    load_entry,
    methods_with,
    methods_without_reference,
)
from ropewalk.jobs.training.loop.architecture.fit import check_model
from ropewalk.jobs.training.loop.chat_data import check_preferences
from ropewalk.jobs.training.loop.config import USUAL, AnomalyConfig, TrainingConfig, check_keep_zeros, fill_defaults
from ropewalk.jobs.training.loop.model_keys import LoraConfig, ModelConfig
from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.validation_keys import (
    HALF,
    PATIENCE,
    VALIDATIONS,
    AdaptationValidationConfig,
    interval,
    size,
)

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
Reference = Literal["adapter", "copy", "precomputed", "none"]

LORA_LR = 1e-5
GRPO_VALIDATIONS, GRPO_HELD_OUT = 10, 64  # of grpo: validations per run, prompts per validation


def _only(key: str) -> str:
    """Return the start of the help text of a key that only some methods use."""
    return ", ".join(methods_with(key))


class AlignOptimConfig(OptimConfig):
    """AdamW for a model that already answers: small steps, no decay."""

    lr: float = Field(
        default=1e-6,
        gt=0,
        description="peak learning rate",
        json_schema_extra=default_text(f"1e-6, with lora {LORA_LR:g}"),
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decay of weights with two or more dimensions")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="decay rates of Adam's two moments")


class AlignValidationConfig(AdaptationValidationConfig):
    """Validation of an aligned model; with grpo it generates answers to held-out prompts, whose rewards are noisy."""

    every_steps: int = interval(f"for {VALIDATIONS} validations per run, with grpo {GRPO_VALIDATIONS}")
    max_sequences: int = size(f"{HALF}, with grpo {GRPO_HELD_OUT}", scored="samples")
    patience: int | None = Field(
        default=PATIENCE,
        ge=1,
        description="stop after this many validations without a lower loss; null: no early stopping",
        json_schema_extra=default_text(f"{PATIENCE}, with grpo unset"),
    )


class AnswersConfig(Section):
    """Conversion of prompts and answers to text."""

    template: Annotated[str, AfterValidator(template_name)] | None = Field(
        default=None, description="file with a Jinja chat template, or built in: chatml, plain; unset: the tokenizer's own"
    )
    system: str | None = Field(default=None, description="system prompt of conversations that have none")
    verbatim: bool | None = Field(
        default=None, description="treat text as plain text, not as messages; unset: if there is no chat template"
    )

    @property
    def template_text(self) -> str | None:
        if self.template is None:
            return None
        return TEMPLATES.get(self.template) or Path(self.template).read_text()


class AlignConfig(TrainingConfig):
    """The keys of an alignment run. A sample is a pair of answers; with `kto` one answer, with `grpo` a prompt's group."""

    usual_keys = ("model.path", "model.run", "data", "method", "beta", "lora", "grpo.rewards", *USUAL)

    model: ModelConfig = Field(description="model to train: {path: DIR} or {run: RUN}")
    data: InputPath = Field(
        description="JSON lines or parquet of {prompt, chosen, rejected}; for kto {prompt, completion, label}"
    )
    validation_data: InputPath | None = Field(
        default=None, description="held-out data of the same form; unset: a fraction of data"
    )
    validation_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="fraction of the prompts to hold out, by a hash of the prompt"
    )
    method: MethodName = Field(default="dpo", description="training method")
    seq_len: int | None = Field(
        default=None,
        ge=2,
        description="maximum tokens of a prompt with its answer; unset: 1024, or the model's positions if fewer",
    )
    on_long: Literal["drop", "cut", "error"] = Field(
        default="drop", description="a prompt with an answer longer than seq_len: drop it, cut its end, or fail; reported"
    )
    chat: AnswersConfig = Field(default=AnswersConfig(), description="conversion of prompts and answers to text")
    lora: LoraConfig | None = Field(default=None, description="train low-rank adapters only; unset: all weights")
    optim: AlignOptimConfig = Field(default=AlignOptimConfig(), description="optimizer and learning rate")

    anomaly: AnomalyConfig = Field(
        default=AnomalyConfig(spike_factor=None),
        description="reaction to a NaN loss; these losses may be near 0 or negative, so that spikes are not detected",
    )
    validation: AlignValidationConfig = Field(
        default=AlignValidationConfig(), description="validation interval, size, early stopping"
    )

    beta: float | None = Field(
        default=None, gt=0, description=f"strength of the preference (orpo: lambda); unset: {default_betas()}"
    )
    loss: Literal["sigmoid", "robust"] = Field(
        default="sigmoid", description=f"{_only('loss')}: with label_smoothing, conservative (sigmoid) or unbiased (robust)"
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description=f"{_only('label_smoothing')}: probability that a pair is swapped"
    )
    length_normalized: bool = Field(
        default=False, description=f"{_only('length_normalized')}: log-probabilities per token instead of per sequence"
    )
    gamma: float | None = Field(default=None, ge=0, description=f"{_only('gamma')}: margin of rewards; unset: half of beta")
    desirable_weight: float = Field(default=1.0, ge=0, description=f"{_only('desirable_weight')}: weight of desirable answers")
    undesirable_weight: float = Field(
        default=1.0, ge=0, description=f"{_only('undesirable_weight')}: weight of undesirable answers"
    )
    reference: Reference | None = Field(
        default=None,
        description="reference model: the model with its adapter disabled, a frozen copy, or log-probabilities computed "
        f"once; unset: adapter with lora, else copy; none for {', '.join(methods_without_reference())}",
    )

    grpo: GrpoConfig = Field(default=GrpoConfig(), description="grpo: generation, rewards and loss")

    @model_validator(mode="after")
    def _fits_grpo(self) -> Self:
        size, grpo = self.batch.global_batch, self.grpo
        if self.method == "grpo" and size % grpo.group_size:
            raise ValueError(f"batch.global_batch: {size} answers are not a multiple of grpo.group_size, {grpo.group_size}")
        if self.method == "grpo" and self.seq_len is not None and self.seq_len <= grpo.max_new_tokens:
            raise ValueError(
                f"grpo.max_new_tokens: {grpo.max_new_tokens} leaves no token of seq_len, {self.seq_len}, for a prompt"
            )
        if self.method == "grpo" and self.reference == "precomputed":
            raise ValueError("reference: grpo generates its answers, so that nothing can be precomputed; choose adapter or copy")
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("method") == "grpo":  # each validation generates answers, and rewards are noisy
            filled = fill_defaults(values, LORA_LR, validations=GRPO_VALIDATIONS, most_validated=GRPO_HELD_OUT)
            if isinstance(filled.get("validation", {}), dict):
                filled["validation"] = {"patience": None, **filled.get("validation", {})}
        else:
            filled = fill_defaults(values, LORA_LR)
        if isinstance(filled.get("anomaly", {}), dict):
            filled["anomaly"] = {"spike_factor": None, **filled.get("anomaly", {})}
        return filled

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        if self.model.path is None and self.model.run is None:
            raise ValueError("model: align starts from a model that already answers; set path or run")
        method = METHODS[self.method]
        if not method.needs_reference and self.reference not in {None, "none"}:
            raise ValueError(f"reference: {self.method} uses no reference; remove the key")
        if method.needs_reference and self.reference == "none":
            others = " or ".join(methods_without_reference())
            raise ValueError(f"reference: {self.method} needs one; choose adapter, copy or precomputed, or method: {others}")
        for key in OPTIONAL_KEYS:
            changed = getattr(self, key) != type(self).model_fields[key].default
            if changed and key not in method.optional_keys:
                raise ValueError(
                    f"{key}: {self.method} does not use it; remove the key, or choose {' or '.join(methods_with(key))}"
                )
        if self.reference == "adapter" and self.lora is None:
            raise ValueError("reference: adapter is the model with its adapter disabled; set lora too, or choose copy")
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("loss: robust corrects for swapped pairs; set label_smoothing to their fraction")
        if self.grpo.workers and self.grpo.engine == "transformers" and self.resources.gpus:
            raise ValueError(
                "grpo.workers: with the engine transformers they generate on CPUs, for which the GPUs would wait; remove workers,"
                " so that ranks generate on their GPUs, or choose another engine"
            )
        check_keep_zeros(self, self.lora)
        return self

    @property
    def strength(self) -> float:
        """`beta`, or the published default of the method."""
        beta = self.beta if self.beta is not None else METHODS[self.method].beta
        assert beta is not None, f"{self.method} has no beta"
        return beta

    def load_loss(self) -> Callable[..., Any]:
        """Import the loss of the method, and bind its options."""
        method = METHODS[self.method]
        assert method.loss is not None
        options = {key: getattr(self, key) for key in method.keys}
        return partial(load_entry(method.loss), **options, **({} if method.beta is None else {"beta": self.strength}))

    @property
    def compared_with(self) -> Reference:
        """`reference`, or the default of the method."""
        if self.reference is not None:
            return self.reference
        if not METHODS[self.method].needs_reference:
            return "none"
        return "copy" if self.lora is None else "adapter"

    def frozen_model(self) -> ModelConfig | None:
        compared = self.method != "grpo" or self.grpo.kl > 0
        return self.model if compared and self.compared_with == "copy" else None

    def whole_models(self) -> int:
        return self.grpo.workers if self.method == "grpo" else 0

    def unset_gpus(self) -> list[UnsetGpus]:
        """Return nothing with GRPO's workers of the engine transformers, which generate on CPUs."""
        return [] if self.grpo.workers and self.grpo.engine == "transformers" else super().unset_gpus()

    def project(self) -> tuple[str, CodeConfig] | None:
        """Return the user's own code that GRPO's rewards need."""
        return (self.grpo.directory, self.grpo.code) if self.method == "grpo" and self.grpo.own_code else None

    def with_inputs(self, resolve: Resolve) -> Self:
        """Return the configuration with its inputs replaced, also the models that rewards name. Raises ConfigError."""
        config = super().with_inputs(resolve)
        rewards = tuple(reward.with_model(resolve) for reward in config.grpo.rewards)
        if rewards == config.grpo.rewards:
            return config
        return config.model_copy(update={"grpo": config.grpo.model_copy(update={"rewards": rewards})})

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError or DataError unless local files exist and the named runs train a model."""
        super().preflight(here)
        template = self.chat.template if self.chat.template not in TEMPLATES else None
        if template is not None and (local := here(template)) is not None and not local.exists():
            raise DataError(f"chat.template: {template}: no such file; check the path")
        for key, path in {"data": self.data, "validation_data": self.validation_data}.items():
            local = here(path) if path is not None and "://" not in path else None
            if path is not None and local is not None:
                check_preferences(key, path, local, self.method)
        check_model("model", self.model, here, seq_len=self.seq_len)
