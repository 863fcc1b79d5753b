"""The keys of the `evaluate` job."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ropewalk.cluster.config import HANGS, RUN_KEYS, WEIGHTS, ModelJobConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import FilePath, PathView
from ropewalk.cluster.section import Section
from ropewalk.jobs.evaluation.tasks.config import Task, ask_hub, check_tasks
from ropewalk.jobs.results.gate import ConditionText
from ropewalk.jobs.runs.models.find_model import ModelRef, find_model
from ropewalk.jobs.training.loop.token_data import Data, check_data
from ropewalk.sharding.config import FLOAT8_KEYS, TENSOR_KEYS, ParallelConfig, PrecisionConfig, check_mesh


class GenerateConfig(Section):
    """Sample generations of the model."""

    prompts: list[str] = Field(default_factory=list, description="prompts to continue; none: no samples")
    max_new_tokens: int = Field(default=64, ge=1, description="tokens to generate after each prompt")
    temperature: float = Field(default=0.8, ge=0, description="sampling temperature; 0 is greedy")


class EvaluateConfig(ModelJobConfig):
    """The keys of an evaluation."""

    usual_keys = (
        *("model", "data", "max_sequences", "micro_batch", "tasks", "task_files", "limit", "fewshot", "chat_template"),
        *("generate.prompts", "require", "seed", *RUN_KEYS),
    )
    hidden_keys = (
        HANGS
        | WEIGHTS
        | {"parallel.accumulate", "parallel.activation_checkpointing"}
        | TENSOR_KEYS
        | {"precision.reduce", "precision.deterministic", "precision.optimizer"}
        | FLOAT8_KEYS
    )

    model: ModelRef = Field(
        description="a run (id, path or latest): its newest complete checkpoint; RUN@STEP; an alias such as production; a "
        "Hugging Face directory; or a name on the hub (ORG/NAME[@REVISION])"
    )
    data: Data | None = Field(
        default=None, description="a data set made by preprocess, or a list of {path, weight}: loss, bits per byte, perplexity"
    )
    split: Literal["train", "validation"] = Field(default="validation", description="the split to score")
    seq_len: int | None = Field(default=None, ge=1, description="tokens of a sequence; unset: as in training, or else 1024")
    max_sequences: int = Field(
        default=1000,
        ge=1,
        description="sequences to score at most, from the beginning of the split, shared among data sets by weight",
    )
    micro_batch: int = Field(default=4, ge=1, description="sequences per forward pass of a rank")
    generate: GenerateConfig = Field(default=GenerateConfig(), description="sample generations")
    tasks: list[Task] = Field(
        default=[], description="tasks in lm-eval's YAML format: a file, a built-in task, or a task of lm-eval"
    )
    task_files: dict[str, FilePath] = Field(
        default={}, description="item files of built-in tasks: {boolq: dev.jsonl}; json, jsonl or parquet"
    )
    limit: int | None = Field(default=None, ge=1, description="items of each task, from its beginning; unset: all")
    fewshot: int | None = Field(
        default=None, ge=0, description="few-shot examples before each item; unset: as the task defines, or else none"
    )
    chat_template: bool = Field(default=False, description="render prompts with the model's chat template")
    system: str | None = Field(default=None, description="system message; without a chat template the beginning of each prompt")
    fewshot_as_turns: bool = Field(default=True, description="with the chat template: each example is a separate turn")
    batch_size: int | None = Field(
        default=None, ge=1, description="maximum questions per forward pass; unset: limited by batch_tokens only"
    )
    batch_tokens: int | None = Field(
        default=None, ge=1, description="approximate maximum tokens per forward pass; unset: 160 on a CPU, 8192 on a GPU"
    )
    shard: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="divide the model for tasks among the ranks; auto: if a copy does not fit into the memory of a node, or GPU. "
        "always: the model for `data` keeps no gathered weights either",
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="number format of the weights for tasks")
    require: dict[str, ConditionText] = Field(
        default={},
        description="the gate, {score: condition}: '<= 0.6', '>= 0.55 by 2se'; a score is a task, TASK/METRIC, loss, perplexity "
        "or bits_per_byte. If a condition is not met, the run ends as REFUSED",
    )
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="how the model is divided among the ranks, for `data`")
    precision: PrecisionConfig = Field(default=PrecisionConfig(), description="number formats, for `data`")

    @field_validator("parallel")
    @classmethod
    def _no_tensor(cls, parallel: ParallelConfig) -> ParallelConfig:
        parallel.refuse_tensor("an evaluation divides models by FSDP alone")
        return parallel

    @field_validator("precision")
    @classmethod
    def _no_float8(cls, precision: PrecisionConfig) -> PrecisionConfig:
        precision.refuse_float8("an evaluation does not train")
        return precision

    def asks_hub(self) -> bool:
        return ask_hub(self.tasks)

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the model, the local data sets and the task files exist, and the ranks can form the mesh."""
        check_mesh(self.parallel, self.resources)
        model = here(self.model) if self.model.startswith("/") else Path(self.model)
        if model is not None:
            find_model(str(model))
        if self.data is not None:
            check_data(self.data, here)
        elif not self.tasks:
            raise ConfigError("nothing to evaluate: name `data` (a data set of preprocess) or `tasks`")
        check_tasks(self.tasks, self.task_files, here)
