"""The methods of compression, their keys, and their valid orders."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.section import Section
from ropewalk.jobs.inference.gguf.gguf_types import GGUF_TYPES, keeps_zeros
from ropewalk.jobs.training.loop.config import fill_warmup
from ropewalk.jobs.training.loop.model_keys import GridConfig
from ropewalk.jobs.training.loop.optim_keys import OptimConfig, warmup_problem
from ropewalk.jobs.training.loop.token_data import Data
from ropewalk.jobs.training.pruning.config import CalibrationConfig, PruneConfig
from ropewalk.sharding.config import BatchConfig, CheckpointConfig

RECOVER_OPTIM: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.0}


class SparsityConfig(Section):
    """Weights set to zero: a fraction of each matrix, or two of every four along a row."""

    sparsity: float | None = Field(default=None, gt=0, lt=1, description="fraction of each matrix to set to zero; unset: 0.5")
    pattern: Literal["2:4"] | None = Field(
        default=None, description="two of every four weights of a row, a pattern that GPUs accelerate"
    )

    @model_validator(mode="after")
    def _check_exclusive(self) -> Self:
        if self.sparsity is not None and self.pattern is not None:
            raise ValueError("2:4 is a sparsity of 0.5; set sparsity or pattern, not both")
        return self

    @property
    def fraction(self) -> float:
        """The fraction of each matrix set to zero."""
        return 0.5 if self.sparsity is None else self.sparsity


class RecoverConfig(Section):
    """Training after pruning, in the common training loop; zeros stay zero."""

    steps: int = Field(ge=1, description="optimizer steps")
    data: Data | None = Field(default=None, description="a data set made by preprocess; unset: the train split of `data`")
    seq_len: int | None = Field(default=None, ge=1, description="tokens of a sequence; unset: as in the measurement")
    batch: BatchConfig = Field(default=BatchConfig(), description="how many sequences a step learns from")
    optim: OptimConfig = Field(default=OptimConfig(**RECOVER_OPTIM), description="optimizer and learning rate")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="when the state is saved")

    @model_validator(mode="before")
    @classmethod
    def _warm_up(cls, values: Any) -> Any:
        return fill_warmup({"optim": RECOVER_OPTIM, **values}) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _reaches_its_peak(self) -> Self:
        if problem := warmup_problem(self.optim, self.steps):
            raise ValueError(problem)
        return self


class CastConfig(Section):
    """Another number format of all weights."""

    dtype: Literal["bfloat16", "float16", "float32"] = Field(default="bfloat16", description="number format")


class TorchaoConfig(Section):
    """Weights quantized by torchao, computed by transformers."""

    type: Literal["int8", "int4", "float8"] = Field(
        default="int8", description="number format of the weights; int4 is stored in bytes on CPUs: it saves no more than int8"
    )
    group_size: int = Field(default=32, ge=1, description="int4: weights that share a scale")


GPTQ = "compensate rounding errors in later columns (GPTQ, 2210.17323); unset: for 5 bits or fewer without sparsity"


class CompressedTensorsConfig(GridConfig):
    """Weights on a grid of few bits, in the format of vLLM."""

    gptq: bool | None = Field(default=None, description=GPTQ)

    @property
    def few_bits(self) -> bool:
        """True if rounding is coarse enough to justify calibration."""
        return self.type == "int4"

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.gptq and self.type != "int4":
            raise ValueError("gptq: int8 has one scale per row, so no later columns can compensate; leave it unset")
        return self


class GgufConfig(Section):
    """A GGUF file, computed by llama.cpp."""

    type: str = Field(default="Q4_K", description=f"number format: {', '.join(GGUF_TYPES)}")
    importance: bool = Field(default=True, description="weigh rounding errors by the activations of the calibration text")
    gptq: bool | None = Field(default=None, description=GPTQ)

    @property
    def few_bits(self) -> bool:
        """True if rounding is coarse enough to justify calibration."""
        return self.type.removeprefix("I")[:2] in {"Q3", "Q4", "Q5"}

    @model_validator(mode="after")
    def _check_type(self) -> Self:
        if self.type not in GGUF_TYPES:
            raise ValueError(f"there is no type {self.type!r}; types: {', '.join(GGUF_TYPES)}")
        return self


Options = SparsityConfig | PruneConfig | RecoverConfig | CastConfig | TorchaoConfig | CompressedTensorsConfig | GgufConfig
SPARSE = ("magnitude", "wanda")
FINAL = ("cast", "torchao", "compressed_tensors", "gguf")  # the output format; no method can follow


class Method(Section):
    """A method: exactly one key with its options. A bare word is a method with default options."""

    magnitude: SparsityConfig | None = Field(default=None, description="set the smallest weights of each matrix to zero")
    wanda: SparsityConfig | None = Field(
        default=None, description="set the weights with the smallest |weight| x input norm of each row to zero (2306.11695)"
    )
    prune: PruneConfig | None = Field(default=None, description="remove layers, channels and heads (Minitron, ShortGPT)")
    recover: RecoverConfig | None = Field(default=None, description="train the pruned model")
    cast: CastConfig | None = Field(default=None, description="another number format")
    torchao: TorchaoConfig | None = Field(default=None, description="quantize with torchao")
    compressed_tensors: CompressedTensorsConfig | None = Field(
        default=None, description="quantize in vLLM's format; weights trained on this grid by qat stay unchanged"
    )
    gguf: GgufConfig | None = Field(default=None, description="write a GGUF file for llama.cpp")

    @model_validator(mode="before")
    @classmethod
    def _expand_word(cls, values: Any) -> Any:
        if isinstance(values, str):
            return {values: {}}
        if isinstance(values, Mapping):
            return {key: {} if value is None and len(values) == 1 else value for key, value in values.items()}
        return values

    @model_validator(mode="after")
    def _check_exclusive(self) -> Self:
        if len(self.model_fields_set & {name for name in type(self).model_fields if getattr(self, name) is not None}) != 1:
            raise ValueError(f"name one method each: {', '.join(type(self).model_fields)}")
        if self.prune is not None and self.prune.calibration != CalibrationConfig():
            raise ValueError("prune.calibration: all methods are calibrated on the same text; set `calibration` of the job")
        return self

    @property
    def name(self) -> str:
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def options(self) -> Any:
        """The method's options: one of `Options`."""
        return getattr(self, self.name)

    @property
    def label(self) -> str:
        """A short name with the essential options."""
        options = self.options
        if self.name in SPARSE:
            return f"{self.name}-{options.pattern or format(options.fraction, 'g')}".replace(":", "of")
        if self.name == "prune":
            return "-".join(f"{key}{value:g}" for key, value in options.plain().items())
        if self.name == "recover":
            return f"recover{options.steps}"
        return str(options.dtype) if self.name == "cast" else f"{self.name}-{options.type}".lower()


def check_composition(methods: Sequence[Method]) -> None:
    """Raise ValueError, with the reason, for methods that cannot be combined in this order."""
    names = [method.name for method in methods]
    for index, method in enumerate(methods):
        before, name = names[:index], method.name
        if final := next((earlier for earlier in before if earlier in FINAL), None):
            raise ValueError(f"{name} after {final}: the output of {final} is final; put {name} before it")
        if name in SPARSE and any(earlier in SPARSE for earlier in before):
            raise ValueError(f"{name} after {before[-1]}: only one sparse method is allowed; keep one of the two")
        if name == "prune" and any(earlier in SPARSE for earlier in before):
            raise ValueError("prune after a sparse method: removing channels would break its pattern; put prune first")
        if name == "recover" and not any(earlier in (*SPARSE, "prune") for earlier in before):
            raise ValueError("recover: nothing was pruned before it; put magnitude, wanda or prune first, or leave it out")
        if getattr(method.options, "gptq", None) and any(earlier in SPARSE for earlier in before):
            raise ValueError(f"{name}.gptq after {before[-1]}: compensation would fill its zeros; leave gptq unset")
        if name == "gguf" and _is_two_of_four(methods[:index]) and not keeps_zeros(method.options.type):
            raise ValueError(
                f"2:4 and then gguf {method.options.type}: its blocks cannot represent zero, so the pattern would be lost; "
                "use Q8_0, Q6_K, Q5_0 or Q4_0, or a sparsity instead of the pattern"
            )


def compensates(methods: Sequence[Method]) -> bool:
    """Return True if the last method uses GPTQ: if configured, or by default with few bits and no zeros to keep."""
    last = methods[-1].options
    if not isinstance(last, (CompressedTensorsConfig, GgufConfig)):
        return False
    return last.few_bits and not any(method.name in SPARSE for method in methods) if last.gptq is None else last.gptq


def _is_two_of_four(methods: Sequence[Method]) -> bool:
    return any(method.name in SPARSE and method.options.pattern is not None for method in methods)


def label_of(methods: Sequence[Method]) -> str:
    """Return the name of a variant that the user has not named."""
    return "+".join(method.label for method in methods)
