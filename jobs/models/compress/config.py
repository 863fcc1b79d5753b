"""The keys of the `compress` job."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.config import DataPath, JobConfig, PathView, Section
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.evaluation.tasks.config import Task, check_tasks
from ropewalk.jobs.models.compress.methods import Method, check_composition, label_of
from ropewalk.jobs.results.gate import ConditionText
from ropewalk.jobs.runs.models.find_model import ModelRef, find_model
from ropewalk.jobs.training.loop.token_data import Data, check_data
from ropewalk.jobs.training.pruning.config import CalibrationConfig
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig

DENSE = "dense"  # the variant that is the model itself
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class TimingConfig(Section):
    """How speed and memory are measured: each variant in a process of its own, which does nothing else."""

    prompt_tokens: int = Field(default=64, ge=1, description="tokens of the prompt before the first one")
    new_tokens: int = Field(default=32, ge=1, description="tokens after the first one")
    repeats: int = Field(default=3, ge=1, description="times that each is measured; their median counts")
    threads: int = Field(default=1, ge=1, description="threads of the engine")


class CompressConfig(JobConfig):
    """The keys of a compression."""

    model: ModelRef = Field(description="a run (id, path or latest), an alias of the registry, or a Hugging Face directory")
    data: Data = Field(description="a data set of the model's tokenizer: its held-out split is measured")
    methods: list[Method] = Field(
        default=[], description="methods in their order, [wanda: {sparsity: 0.5}, gguf: {type: Q4_K}]; one variant"
    )
    variants: dict[str, list[Method]] = Field(
        default={}, description="many variants at once: {name: [methods in their order]}; a row of the table each"
    )
    split: Literal["train", "validation"] = Field(default="validation", description="the split to measure on")
    seq_len: int = Field(default=256, ge=2, description="tokens of a sequence that is measured")
    max_sequences: int = Field(
        default=64, ge=2, description="sequences to measure on, from the beginning of the split, of each data set its share"
    )
    micro_batch: int = Field(default=4, ge=1, description="sequences that are computed at once")
    calibration: CalibrationConfig = Field(
        default=CalibrationConfig(), description="the text on which activations are seen; unset data: the train split of `data`"
    )
    tasks: list[Task] = Field(
        default=[],
        description="tasks of evaluate that have options, on which each variant is scored in its engine: [piqa]",
    )
    task_files: dict[str, DataPath] = Field(
        default={}, description="where the items of this program's own tasks lie: {piqa: valid.jsonl}; json, jsonl or parquet"
    )
    limit: int | None = Field(default=None, ge=1, description="items of each task, from its beginning; unset: all")
    fewshot: int | None = Field(default=None, ge=0, description="examples before each item; unset: as the task says, else none")
    timing: TimingConfig | None = Field(default=TimingConfig(), description="speed and memory; null: not measured")
    keep: bool = Field(default=True, description="keep the models of all variants in the run, under variants/NAME")
    require: dict[str, ConditionText] = Field(
        default={},
        description="the gate, {VARIANT/FIGURE: condition}: {q4/more_bits_per_byte: '<= 0.02', q4/bytes: '<= 90e6'}; figures: "
        "bits_per_byte, more_bits_per_byte, kl, bytes, rss, first_token_ms, per_token_ms, TASK. A missed one refuses the run",
    )
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="recover: how the model is divided among the ranks")
    precision: PrecisionConfig = Field(default=PrecisionConfig(), description="recover: number formats")

    @model_validator(mode="after")
    def _composed(self) -> Self:
        if not self.methods and not self.variants:
            raise ValueError("nothing to do; name `methods` (one variant) or `variants`")
        for name, methods in self.all_variants().items():
            if name == DENSE or not _NAME.fullmatch(name):
                raise ValueError(f"variants: {name!r} is no name for one; use letters, digits, . _ + -, and not {DENSE!r}")
            if not methods:
                raise ValueError(f"variants: {name} has no method; the model itself is measured anyway, as {DENSE}")
            try:
                check_composition(methods)
            except ValueError as error:
                raise ValueError(f"variants: {name}: {error}" if name in self.variants else f"methods: {error}") from None
        return self

    def all_variants(self) -> dict[str, list[Method]]:
        """Every variant by name, in the order of the table."""
        own = {label_of(self.methods): self.methods} if self.methods else {}
        return {**own, **self.variants}

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the model and the local data sets are there."""
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
