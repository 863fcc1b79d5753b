"""The keys of the `compress` job."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ropewalk.cluster.config import HANGS, RUN_KEYS, WEIGHTS, ModelJobConfig, UnsetGpus
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import FilePath, PathView
from ropewalk.cluster.section import Section
from ropewalk.jobs.evaluation.tasks.config import Task, ask_hub, check_tasks
from ropewalk.jobs.models.compress.methods import Method, check_composition, label_of
from ropewalk.jobs.results.gate import ConditionText
from ropewalk.jobs.runs.models.find_model import ModelRef, find_model
from ropewalk.jobs.training.loop.token_data import Data, check_data
from ropewalk.jobs.training.pruning.config import CalibrationConfig
from ropewalk.sharding.config import FLOAT8_KEYS, TENSOR_KEYS, ParallelConfig, PrecisionConfig

DENSE = "dense"  # name of the unchanged model
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class TimingConfig(Section):
    """Measurement of speed and memory: each variant in a process of its own."""

    prompt_tokens: int = Field(default=64, ge=1, description="tokens of the prompt")
    new_tokens: int = Field(default=32, ge=1, description="tokens to generate after the first")
    repeats: int = Field(default=3, ge=1, description="repetitions; the median is reported")
    threads: int = Field(default=1, ge=1, description="threads of the engine")


class CompressConfig(ModelJobConfig):
    """The keys of a compression."""

    usual_keys = (
        *("model", "data", "methods", "variants", "seq_len", "max_sequences", "calibration.sequences", "tasks", "task_files"),
        *("require", "keep", "seed", *RUN_KEYS),
    )
    hidden_keys = HANGS | WEIGHTS | TENSOR_KEYS | FLOAT8_KEYS

    model: ModelRef = Field(
        description="a run (id, path or latest), an alias of the registry, a Hugging Face directory, or a name on the hub"
    )
    data: Data = Field(description="a data set with the model's tokenizer, whose held-out split is used for measuring")
    methods: list[Method] = Field(
        default=[], description="methods of a single variant, in order: [wanda: {sparsity: 0.5}, gguf: {type: Q4_K}]"
    )
    variants: dict[str, list[Method]] = Field(
        default={}, description="several variants, {name: [methods in order]}; each is a row of the table"
    )
    split: Literal["train", "validation"] = Field(default="validation", description="the split to measure on")
    seq_len: int = Field(default=256, ge=2, description="tokens of a measured sequence")
    max_sequences: int = Field(
        default=64, ge=2, description="sequences to measure, from the beginning of the split, shared among data sets by weight"
    )
    micro_batch: int = Field(default=4, ge=1, description="sequences per forward pass")
    calibration: CalibrationConfig = Field(
        default=CalibrationConfig(), description="the calibration text; unset data: the train split of `data`"
    )
    tasks: list[Task] = Field(
        default=[],
        description="multiple-choice tasks of evaluate, scored in the engine of each variant: [piqa]",
    )
    task_files: dict[str, FilePath] = Field(
        default={}, description="item files of built-in tasks: {piqa: valid.jsonl}; json, jsonl or parquet"
    )
    limit: int | None = Field(default=None, ge=1, description="items of each task, from its beginning; unset: all")
    fewshot: int | None = Field(
        default=None, ge=0, description="few-shot examples before each item; unset: as the task defines, else none"
    )
    timing: TimingConfig | None = Field(default=TimingConfig(), description="speed and memory; null: not measured")
    keep: bool = Field(default=True, description="keep the models of all variants in the run, under variants/NAME")
    require: dict[str, ConditionText] = Field(
        default={},
        description="the gate, {VARIANT/FIGURE: condition}: {q4/more_bits_per_byte: '<= 0.02', q4/bytes: '<= 90e6'}; figures: "
        "bits_per_byte, more_bits_per_byte, kl, bytes, rss, first_token_ms, per_token_ms, TASK. "
        "If a condition is not met, the run ends as REFUSED",
    )
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="recover: how the model is divided among the ranks")
    precision: PrecisionConfig = Field(default=PrecisionConfig(), description="recover: number formats")

    @field_validator("parallel")
    @classmethod
    def _no_tensor(cls, parallel: ParallelConfig) -> ParallelConfig:
        parallel.refuse_tensor("this job computes on one rank")
        return parallel

    @field_validator("precision")
    @classmethod
    def _no_float8(cls, precision: PrecisionConfig) -> PrecisionConfig:
        precision.refuse_float8("recovery trains in the format of `compute`")
        return precision

    @model_validator(mode="after")
    def _check_methods(self) -> Self:
        if not self.methods and not self.variants:
            raise ValueError("nothing to do; name `methods` (one variant) or `variants`")
        for name, methods in self.all_variants().items():
            if name == DENSE or not _NAME.fullmatch(name):
                raise ValueError(f"variants: {name!r} is not a valid name; use letters, digits, . _ + -, and not {DENSE!r}")
            if not methods:
                raise ValueError(f"variants: {name} has no method; the model itself is always measured, as {DENSE}")
            try:
                check_composition(methods)
            except ValueError as error:
                raise ValueError(f"variants: {name}: {error}" if name in self.variants else f"methods: {error}") from None
        return self

    def all_variants(self) -> dict[str, list[Method]]:
        """Return every variant by name, in the order of the table."""
        unnamed = {label_of(self.methods): self.methods} if self.methods else {}
        return {**unnamed, **self.variants}

    def unset_gpus(self) -> list[UnsetGpus]:
        return [replace(part, most=1) for part in super().unset_gpus()]  # it computes on one rank

    def required_environment(self) -> Mapping[str, str]:
        return self.precision.environment()

    def asks_hub(self) -> bool:
        return ask_hub(self.tasks)

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the model and the local data sets exist."""
        model = here(self.model) if self.model.startswith("/") else Path(self.model)
        if model is not None:
            find_model(str(model))
        check_data(self.data, here)
        if self.calibration.data is not None:
            check_data(self.calibration.data, here)
        check_tasks(self.tasks, self.task_files, here)
        for name in self.require:
            variant = name.rpartition("/")[0]
            if variant not in {DENSE, *self.all_variants()}:
                raise ConfigError(
                    f"require: there is no variant {variant!r}; variants: {DENSE}, {', '.join(self.all_variants())}"
                )
