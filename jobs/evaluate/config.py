"""The keys of the `evaluate` job."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cluster.config import JobConfig, PathView, Section
from jobs.runs.find_model import ModelRef, find_model
from jobs.training.token_data import Data, check_data
from sharding.config import ParallelConfig, PrecisionConfig


class GenerateConfig(Section):
    """Sample generations of the model."""

    prompts: list[str] = Field(default_factory=list, description="prompts to continue; none: no samples")
    max_new_tokens: int = Field(default=64, ge=1, description="tokens to generate after each prompt")
    temperature: float = Field(default=0.8, ge=0, description="sampling temperature; 0 is greedy")


class EvaluateConfig(JobConfig):
    """The keys of an evaluation."""

    model: ModelRef = Field(description="a run (id, path or latest): its newest complete checkpoint; or a Hugging Face directory")
    data: Data = Field(description="a data set made by preprocess, or a list of {path, weight}")
    split: Literal["train", "validation"] = Field(default="validation", description="the split to score")
    seq_len: int | None = Field(default=None, ge=1, description="tokens of a sequence; unset: as the run trained, else 1024")
    max_sequences: int = Field(default=1000, ge=1, description="sequences to score, from the beginning of the split")
    micro_batch: int = Field(default=4, ge=1, description="sequences that one rank computes at once")
    generate: GenerateConfig = Field(default=GenerateConfig(), description="sample generations")
    parallel: ParallelConfig = Field(default=ParallelConfig(), description="how the model is divided among the ranks")
    precision: PrecisionConfig = Field(default=PrecisionConfig(), description="number formats")

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the model and the local data sets are there."""
        model = here(self.model) if self.model.startswith("/") else Path(self.model)
        if model is not None:
            find_model(str(model))
        check_data(self.data, here)
