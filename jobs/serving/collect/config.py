"""The keys of the `collect` job."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from ropewalk.cluster.config import DataPath, JobConfig, PathView, Section
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.runs.show.status import find_run


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Files = Annotated[tuple[DataPath, ...], BeforeValidator(_one_or_many)]


class ReplayConfig(Section):
    """Conversations that the model has learnt before, lest it forget them."""

    data: Files = Field(min_length=1, description="conversations: .jsonl[.gz|.zst] or .parquet, files or globs")
    share: float = Field(default=0.3, ge=0, lt=1, description="their share of the conversations of the new data set")


class DecontaminateConfig(Section):
    """Evaluation items of which no conversation may hold a copy."""

    against: Files = Field(min_length=1, description="files of items, as `decontaminate` of preprocess reads them")
    ngram: int = Field(default=13, ge=8, description="words in a row that an item and a conversation share")


class CollectConfig(JobConfig):
    """What people asked a serving run, with the answers that they corrected or liked, as files for finetune and align."""

    watch: str = Field(description="the serving run, which captures (`capture`)")
    since: float | None = Field(
        default=None,
        description="only exchanges of this time and later, or of which something was said then, in seconds since the epoch",
    )
    until: float | None = Field(default=None, description="only exchanges and feedback before this time; unset: up to now")
    unrated: bool = Field(default=False, description="learn from answers that nobody has judged, too")
    most: int | None = Field(default=None, ge=1, description="at most so many new conversations, the newest; unset: all")
    replay: ReplayConfig | None = Field(default=None, description="conversations that are mixed in; unset: none")
    decontaminate: DecontaminateConfig | None = Field(default=None, description="leave out what holds evaluation items")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("since must be before until")
        return self

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the serving run is there."""
        found = find_run(self.watch)
        if not (found.path / "feedback").is_dir():
            raise ConfigError(f"watch: {found.id} has captured nothing yet; serve with `capture` switched on")
