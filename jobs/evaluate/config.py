"""The keys of the `evaluate` job."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from cluster.config import DataPath, JobConfig, PathView, Section, absolute
from cluster.errors import ConfigError
from jobs.runs.find_model import ModelRef, find_model
from jobs.scores.gate import ConditionText
from jobs.training.token_data import Data, check_data
from sharding.config import ParallelConfig, PrecisionConfig

BUILT_IN = Path(__file__).with_name("tasks")  # NAME.yaml each; they read files that the user has
_SUFFIXES = (".yaml", ".yml")


class GenerateConfig(Section):
    """Sample generations of the model."""

    prompts: list[str] = Field(default_factory=list, description="prompts to continue; none: no samples")
    max_new_tokens: int = Field(default=64, ge=1, description="tokens to generate after each prompt")
    temperature: float = Field(default=0.8, ge=0, description="sampling temperature; 0 is greedy")


def _task(word: str) -> str:
    return absolute(word) if is_file(word) else word


def is_file(word: str) -> bool:
    """Whether a task is named by its file."""
    return word.endswith(_SUFFIXES)


Task = Annotated[str, AfterValidator(_task)]


class EvaluateConfig(JobConfig):
    """The keys of an evaluation."""

    model: ModelRef = Field(
        description="a run (id, path or latest): its newest complete checkpoint; RUN@STEP; an alias such as production; or a "
        "Hugging Face directory"
    )
    data: Data | None = Field(
        default=None, description="a data set made by preprocess, or a list of {path, weight}: loss, bits per byte, perplexity"
    )
    split: Literal["train", "validation"] = Field(default="validation", description="the split to score")
    seq_len: int | None = Field(default=None, ge=1, description="tokens of a sequence; unset: as the run trained, else 1024")
    max_sequences: int = Field(default=1000, ge=1, description="sequences to score, from the beginning of the split")
    micro_batch: int = Field(default=4, ge=1, description="sequences that one rank computes at once")
    generate: GenerateConfig = Field(default=GenerateConfig(), description="sample generations")
    tasks: list[Task] = Field(
        default=[], description="tasks as lm-eval's YAML has them: a file, a name of this program's own, or a name of lm-eval's"
    )
    task_files: dict[str, DataPath] = Field(
        default={}, description="where the items of this program's own tasks lie: {boolq: dev.jsonl}; json, jsonl or parquet"
    )
    limit: int | None = Field(default=None, ge=1, description="items of each task, from its beginning; unset: all")
    fewshot: int | None = Field(default=None, ge=0, description="examples before each item; unset: as the task says, else none")
    chat_template: bool = Field(default=False, description="put prompts as the model's chat template has them")
    system: str | None = Field(default=None, description="a system message, or with no chat template the beginning of a prompt")
    fewshot_as_turns: bool = Field(default=True, description="with the chat template: each example is a turn of its own")
    batch_size: int | None = Field(default=None, ge=1, description="the most questions of a forward pass; unset: by their tokens")
    batch_tokens: int | None = Field(
        default=None, ge=1, description="about the most tokens of a forward pass; unset: 160 on a CPU, 8192 on a GPU"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="number format of the weights for tasks")
    require: dict[str, ConditionText] = Field(
        default={},
        description="the gate, {score: condition}: '<= 0.6', '>= 0.55 by 2se'; a score is a task, TASK/METRIC, loss, perplexity "
        "or bits_per_byte. The run is refused, and ends as failed, where one is not met",
    )
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="how the model is divided among the ranks, for `data`")
    precision: PrecisionConfig = Field(default=PrecisionConfig(), description="number formats, for `data`")

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the model, the local data sets and the task files are there."""
        model = here(self.model) if self.model.startswith("/") else Path(self.model)
        if model is not None:
            find_model(str(model))
        if self.data is not None:
            check_data(self.data, here)
        elif not self.tasks:
            raise ConfigError("nothing to evaluate: name `data` (a data set of preprocess) or `tasks`")
        for key, path in [*(("tasks", t) for t in self.tasks if is_file(t)), *self.task_files.items()]:
            local = here(path) if path.startswith("/") else None
            if local is not None and not local.is_file():
                raise ConfigError(f"{key}: there is no file {path}")
        for name in self.tasks:
            check_task(name, self.task_files)


def built_in_tasks() -> list[str]:
    """The names of this program's own tasks."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def check_task(name: str, files: dict[str, str]) -> None:
    """Raise ConfigError for a task of this program's own whose items' file is not named, or a name that is nearly one."""
    known = built_in_tasks()
    if name in known and name not in files:
        raise ConfigError(f"tasks: {name} reads a file of yours; name it: task_files.{name}=FILE (json, jsonl or parquet)")
    if unknown := [key for key in files if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"task_files: {unknown[0]!r} is no task of this program{hint}; its tasks: {', '.join(known)}")
