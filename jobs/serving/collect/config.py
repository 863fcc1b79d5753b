"""Configuration keys of the `collect` job."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from ropewalk.cluster.config import HANGS, RANKS, WEIGHTS, JobConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import DataPaths, PathView
from ropewalk.cluster.section import Section
from ropewalk.jobs.runs.show.status import find_run


class ReplayConfig(Section):
    """Earlier training conversations to mix in, against forgetting."""

    data: DataPaths = Field(min_length=1, description="conversations: .jsonl[.gz|.zst] or .parquet, files or globs")
    share: float = Field(default=0.3, ge=0, lt=1, description="their share of all conversations in the new data set")


class DecontaminateConfig(Section):
    """Evaluation items that must not occur in a conversation."""

    against: DataPaths = Field(
        min_length=1, description="files of evaluation items, in any format `decontaminate` of preprocess reads"
    )
    ngram: int = Field(default=13, ge=8, description="length in words of an overlap that counts as a copy")


class CollectConfig(JobConfig):
    """Collect conversations and preference pairs from a serving run's exchanges and ratings, for finetune and align."""

    usual_keys = ("watch", "since", "until", "unrated", "most", "replay", "decontaminate", "seed", "name")
    hidden_keys = HANGS | RANKS | WEIGHTS | {"resources.gpus"}

    watch: str = Field(description="serving run with `capture` switched on")
    since: float | None = Field(
        default=None,
        description="only exchanges made or rated at this time or later, in seconds since the epoch",
    )
    until: float | None = Field(default=None, description="only exchanges and ratings before this time; unset: now")
    unrated: bool = Field(default=False, description="include answers without a rating")
    most: int | None = Field(default=None, ge=1, description="maximum number of new conversations, newest first; unset: all")
    most_per_client: int | None = Field(
        default=1000,
        ge=1,
        description="maximum number of new conversations, and of pairs, from one client, newest first; a client is the "
        "name of a token of `auth`, and clients without a name are not limited; null: no limit",
    )
    replay: ReplayConfig | None = Field(default=None, description="earlier conversations to mix in; unset: none")
    decontaminate: DecontaminateConfig | None = Field(
        default=None, description="drop conversations and pairs that contain evaluation items"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("since must be before until")
        return self

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the serving run has captured something."""
        run = find_run(self.watch)
        if not (run.path / "feedback").is_dir():
            raise ConfigError(f"watch: {run.id} has captured nothing yet; serve with `capture` switched on")
